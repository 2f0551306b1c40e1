"""Settings: fields of a dataclass that say what they are, for the command line."""

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any


def setting(default: Any, help: str, *, short: str | None = None, typed: Mapping[str, str] | None = None) -> Any:
    """A dataclass's field that the command line can set.

    Args:
        default: its value.
        help: its help text.
        short: another option for it, such as "--lr".
        typed: of values that have another name on the command line, that name.
    """
    return field(default=default, metadata={"help": help, "short": short, "typed": typed or {}})


def helps(config: type) -> dict[str, str]:
    """What each setting of a dataclass is, by its name."""
    return {own.name: own.metadata["help"] for own in fields(config) if "help" in own.metadata}


def option(name: str) -> str:
    """A setting's option."""
    return f"--{name.replace('_', '-')}"


def as_typed(config: type, name: str, value: Any) -> str:
    """A setting's option with a value, as on a command line."""
    if isinstance(value, bool):
        return option(name) if value else option(f"no_{name}")
    return f"{option(name)} {value_as_typed(config, name, value)}"


def value_as_typed(config: type, name: str, value: Any) -> str:
    """A value of a dataclass's setting, as on a command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(value_as_typed(config, name, x) for x in value)
    if isinstance(value, float):
        return f"{value:g}"
    if value is None:
        return "none"
    typed = next(own.metadata["typed"] for own in fields(config) if own.name == name)
    return typed.get(value, str(value))

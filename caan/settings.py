"""Settings: fields of a dataclass that say what they are, for the command line."""

from dataclasses import field, fields
from typing import Any

# torch's dtypes, by the names that users see.
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_SHORT = {long: short for short, long in PRECISIONS.items()}


def setting(default: Any, help: str, *, short: str | None = None) -> Any:
    """A dataclass's field that the command line can set.

    Args:
        default: its value.
        help: its help text.
        short: another option for it, such as "--lr".
    """
    return field(default=default, metadata={"help": help, "short": short})


def helps(config: type) -> dict[str, str]:
    """What each setting of a dataclass is, by its name."""
    return {own.name: own.metadata["help"] for own in fields(config) if "help" in own.metadata}


def option(name: str) -> str:
    """A setting's option."""
    return f"--{name.replace('_', '-')}"


def as_typed(name: str, value: Any) -> str:
    """A setting's option with its value, as on a command line."""
    if isinstance(value, bool):
        return option(name) if value else option(f"no_{name}")
    return f"{option(name)} {value_as_typed(value)}"


def value_as_typed(value: Any) -> str:
    """A setting's value, as on a command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(value_as_typed, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else _SHORT.get(value, str(value))

"""Settings: fields of a dataclass that say what they are, for the command line."""

from dataclasses import field, fields
from typing import Any


def setting(default: Any, help: str) -> Any:
    """A dataclass's field that the command line can set."""
    return field(default=default, metadata={"help": help})


def helps(config: type) -> dict[str, str]:
    """What each setting of a dataclass is, by its name."""
    return {own.name: own.metadata["help"] for own in fields(config) if "help" in own.metadata}

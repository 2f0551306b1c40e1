"""The `caan` command: one module a subcommand, each with `add_arguments(parser)` and `run(arguments)`."""

import argparse
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import caan

from ..signals import handled
from . import helping
from .refusals import refused

_COMMANDS = {
    "extract": "make features of photographs, with captions or without",
    "train": "train a model",
    "evaluate": "the recall table of a model: R@1, R@5, R@10 and ranks",
    "index": "project a gallery once and store it",
    "search": "search a gallery: images for a text; captions or images for an image",
    "show": "pictures: the attention of a pair, a training, retrieved images or captions",
    "demo": "train, evaluate and show on rendered scenes, in about two minutes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `caan`.

    Args:
        arguments: the command line without the program's name; None takes that of the process.

    Returns:
        0; 1 where input cannot be used, with one line that says why on stderr; 130 after Ctrl-C in the command's work. A
        command line that cannot be understood ends the process with 2.

    Raises:
        KeyboardInterrupt: Ctrl-C before that work.
    """
    _open_streams()
    parser = argparse.ArgumentParser(prog="caan", description="Context-aware attention for image-text retrieval.")
    parser.add_argument("--version", action="version", version=f"caan {caan.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    asked = next((x for x in (sys.argv[1:] if arguments is None else arguments) if not x.startswith("-")), None)
    try:
        # The others, with torch behind them, need not be waited for. Who completes a line for a shell has not told the command.
        chosen = _COMMANDS if "_ARGCOMPLETE" in os.environ else [name for name in _COMMANDS if name == asked]
        modules = {name: import_module(f".{name}", __package__) for name in chosen}
    except ModuleNotFoundError as error:
        return _missing(error)
    for name, text in _COMMANDS.items():
        if not (module := modules.get(name)):
            commands.add_parser(name, help=text)
            continue
        # Python's -OO takes docstrings away.
        description = (module.__doc__ or text).split("\n\n", 1)[0]
        command = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
        module.add_arguments(command)
        command.set_defaults(run=module.run, name=name)
    helping.complete_parsers(parser)
    helping.complete_in_shell(parser)
    words = sys.argv[1:] if arguments is None else list(arguments)
    helping.check_options(parser, words)
    parsed, unknown = parser.parse_known_args(words)
    if unknown:
        # By the root parser, argparse would show the usage of `caan` alone.
        parsed.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A table is worth more than its arrows, where an encoding has none.
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What is no text is refused where it is used, and ends no session.
        sys.stdin.reconfigure(errors="surrogateescape")
    before = multiprocessing.active_children()
    try:
        with handled(_terminated, signal.SIGTERM):
            parsed.run(parsed)
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has enough. Python flushes at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        return _missing(error)
    except (ValueError, OSError, FloatingPointError, MemoryError, EOFError, RuntimeError) as error:
        refusal = refused(error)
        if refusal is None and isinstance(error, (RuntimeError, EOFError)):
            raise
        said = refusal or helping.options_as_typed(parsed.parser, str(error))
        print(f"caan {parsed.name}: error: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        # A loader's worker may hang in a read, and whatever ends waits for it.
        for child in multiprocessing.active_children():
            if child not in before:
                child.kill()
        print(f"caan {parsed.name}: {stop.args[0] if stop.args else 'stopped'}", file=sys.stderr)
        return 130
    return 0


def _open_streams() -> None:
    """A job without a terminal may have been started with closed streams."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _terminated(number: int, frame: Any) -> None:
    """What ends a job, and torchrun where a process of it was lost, is as Ctrl-C is."""
    raise KeyboardInterrupt


def _missing(error: ModuleNotFoundError) -> int:
    print(f"caan: error: {error}; `pip install 'caan_kernels[caan]'` installs what is missing", file=sys.stderr)
    return 1

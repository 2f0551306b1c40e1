"""Texts that are typed one after the other: `caan search --interactive`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_END = ("quit", "exit")
_KEPT_LINES = 1000


def texts() -> Iterator[str]:
    """Ask for texts until `quit` or the end of the input."""
    with _history():
        print("A text finds images; quit or Ctrl-D ends.")
        while True:
            try:
                text = input("text> ").strip()
            except EOFError:
                print()
                return
            if not sys.stdin.isatty():
                # A terminal shows what is typed.
                print(text)
            if text.lower() in _END:
                return
            if text:
                yield text


@contextmanager
def _history() -> Iterator[None]:
    """On a terminal, a line can be edited, and lines of this session and earlier ones can be had again."""
    try:
        # Gives `input` a line that can be edited. Some systems have none.
        import readline
    except ImportError:
        readline = None
    if not (readline and sys.stdin.isatty() and sys.stdout.isatty()):
        yield
        return
    file = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "caan", "history")
    with suppress(OSError):
        readline.read_history_file(file)
    before = readline.get_current_history_length()
    try:
        yield
    finally:
        readline.set_history_length(_KEPT_LINES)
        # A session is worth more than its history. Another session may have added lines since.
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.append_history_file(readline.get_current_history_length() - before, file)

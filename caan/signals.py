"""What becomes of signals while something runs."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handled(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Have `handler` called for these signals, and what was called before again afterwards; nothing outside the main thread, which
    alone may say what becomes of signals."""
    in_charge = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if in_charge}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)

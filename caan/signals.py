"""What becomes of signals while something runs."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Who asks a job to stop kills it some seconds later.
_GRACE = 8.0


@contextmanager
def handled(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Have `handler` called for these signals, and what was called before again afterwards; nothing outside the main thread, which
    alone may say what becomes of signals."""
    in_charge = threading.current_thread() is threading.main_thread()
    # A handler that a program written in C has set could not be put back.
    ours = [number for number in numbers if in_charge and signal.getsignal(number) is not None]
    before = {number: signal.signal(number, handler) for number in ours}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopRequests:
    """Ctrl-C and SIGTERM as a question that is asked between steps.

    A second Ctrl-C stops at once, and so does a request that nobody has asked about for 8 s: a step may be waiting for data, or for
    another process, that never comes.

    Attributes:
        requested: whether to stop.
    """

    def __init__(self):
        self.requested = False
        self._at_once = False
        # What sends the second Ctrl-C where no one else does.
        self._timer = threading.Timer(_GRACE, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
        self._timer.daemon = True

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Take the signals' place until the block ends."""
        try:
            with handled(self._request, signal.SIGINT, signal.SIGTERM):
                yield
        finally:
            self._timer.cancel()

    def follow(self) -> None:
        """The request is being followed: what is to be saved before may take its time."""
        self._timer.cancel()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Stop at once in this block, which leaves nothing half done.

        Raises:
            KeyboardInterrupt: asked to stop, now or before.
        """
        self._at_once = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _request(self, number: int, frame: Any) -> None:
        if self._at_once or (self.requested and number == signal.SIGINT):
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            self._timer.start()

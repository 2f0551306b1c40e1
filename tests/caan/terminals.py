"""A terminal for a test."""

import fcntl
import pty
import struct
import termios


def open_terminal() -> tuple[int, int]:
    """Both ends of a terminal of 24 lines and 80 columns: the test's, and that of what is tested."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return ours, theirs

"""What the machine refuses, and not the data: told in one line."""

import re

_KILLED = "a process of --workers was killed, as happens where the memory is not enough"
_REFUSALS = (
    (
        r"Too many open files|_workers_status",
        "this process may not open as many files as --workers need; fewer --workers, or a higher `ulimit -n`",
    ),
    # Before the next but one, whose words it has, too.
    (
        r"</torch_|shared memory|Bus error",
        "the processes of --workers need more shared memory than /dev/shm has; --workers 0 needs none",
    ),
    (r"CUDA out of memory\. (?P<detail>Tried to allocate [\d.]+ \w+)", "the GPU's memory is not enough"),
    (r"you tried to allocate (?P<detail>\d+ bytes)|std::bad_alloc|Unable to allocate (?P<of_numpy>.*)", "the memory is not enough"),
    (r"DataLoader worker.*(killed by signal: (?P<detail>\w+)|exited unexpectedly)", _KILLED),
    (r"can't start new thread", "the system gives this process no more threads"),
    (r"CUDA error: (?P<detail>.*)", "the GPU failed"),
)


def refused(error: BaseException) -> str | None:
    """What to say of an error where the machine has too little for the work; None of any other error."""
    # What an error of ours, or of a file, says is the matter.
    if not isinstance(error, (RuntimeError, MemoryError, EOFError, ConnectionResetError)):
        return None
    for pattern, what in _REFUSALS:
        found = re.search(pattern, str(error))
        if found:
            detail = next(filter(None, found.groupdict().values()), None)
            return f"{what} ({detail})" if detail else what
    # What was being received from it when it was killed.
    if type(error) in (EOFError, ConnectionResetError):
        return _KILLED
    return "the memory is not enough" if isinstance(error, MemoryError) else None

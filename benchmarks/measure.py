"""Time, memory and error of one call."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

MIB = 1 << 20


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(
    call: Callable[[], object], device: torch.device, at_least: float = 0.2, before: Callable[[], object] | None = None
) -> float:
    """Mean seconds of a call, repeated until calls took `at_least` seconds; `before` precedes each and is not timed."""
    passed, count = 0.0, 0
    while True:
        if before is not None:
            before()
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        passed += time.perf_counter() - start
        count += 1
        if passed >= at_least:
            return passed / count


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def spread(values: Sequence[float]) -> float | None:
    """(largest - smallest) / median; None for fewer than two values."""
    return (max(values) - min(values)) / median(values) if len(values) > 1 else None


def status_bytes(field: str) -> int:
    """A size in /proc/self/status (VmRSS, VmHWM) in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def return_free_memory() -> None:
    """Give what the allocator keeps for later back to the system, so that the next call's pages are seen to be new."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Bytes that a call held at its worst beyond what was allocated before it; None where the system cannot tell.

    On Linux the resident peak of this process is reset through /proc/self/clear_refs, so that no peak falls between two
    samples. What a caller still holds after its first call (work buffers kept for later) would not be seen in its next:
    it is remembered under the caller's name and added. Pages of libraries that the call loads count too.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kept: dict[str, int] = {}

    @contextmanager
    def watch(self, name: str) -> Iterator[dict[str, int | None]]:
        """Yields a dict whose "bytes" is set when the block ends; a result that outlives the block counts as kept."""
        seen: dict[str, int | None] = {"bytes": None}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            yield seen
            torch.cuda.synchronize(self.device)
            seen["bytes"] = torch.cuda.max_memory_allocated(self.device) - before
            return
        return_free_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = status_bytes("VmRSS")
        except OSError:
            yield seen
            return
        yield seen
        peak = status_bytes("VmHWM")
        seen["bytes"] = max(0, peak - before) + self.kept.get(name, 0)
        return_free_memory()
        self.kept[name] = max(0, self.kept.get(name, 0) + status_bytes("VmRSS") - before)


class Neighbours:
    """How much of the machine other processes take from now on."""

    def __init__(self) -> None:
        self.before = self.ticks()

    @staticmethod
    def ticks() -> tuple[float, float, float] | None:
        """Seconds of all cores: in total, busy, and busy for this process and its children; None where unknown."""
        try:
            line = Path("/proc/stat").read_text().splitlines()[0]
        except OSError:
            return None
        # user, nice, system, idle, iowait, irq, softirq, steal
        seconds = [int(word) / os.sysconf("SC_CLK_TCK") for word in line.split()[1:9]]
        return sum(seconds), sum(seconds) - seconds[3] - seconds[4], sum(os.times()[:4])

    def share(self) -> float | None:
        """Part of all cores' time, 0 to 1."""
        now = self.ticks()
        if now is None or self.before is None or now[0] <= self.before[0]:
            return None
        total, busy, own = (after - before for after, before in zip(now, self.before, strict=True))
        return max(0.0, (busy - own) / total)


def available_bytes(device: torch.device) -> int | None:
    """Memory that a new allocation may use, a container's limit included; None where the system cannot tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return free


def max_error(result: Tensor, exact: Tensor) -> float:
    """Largest absolute difference, 0 of nothing; NaN anywhere counts as infinite."""
    difference = (result.detach().double() - exact.detach().double()).abs().nan_to_num(nan=torch.inf)
    return difference.max().item() if difference.numel() else 0.0


def spread_errors(result: Tensor, exact: Tensor) -> tuple[float, float]:
    """Root mean square and 99th percentile of the absolute differences; NaN anywhere counts as infinite."""
    difference = (result.detach().double() - exact.detach().double()).abs().flatten().nan_to_num(nan=torch.inf)
    return difference.square().mean().sqrt().item(), difference.quantile(0.99, interpolation="higher").item()


def relative_error(result: Tensor, exact: Tensor) -> float:
    """||result - exact|| / ||exact||, Euclidean; NaN anywhere counts as infinite."""
    exact = exact.detach().double()
    error = ((result.detach().double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()
    return float("inf") if error != error else error

"""The processes of one job, as torchrun starts them. A job of one process is the same code, and nothing is sent."""

import atexit
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import first_line
from .isolation import integers
from .progress import warn

# A process waits for the slowest one, which may have hours more to do. One that died is noticed by its closed connection.
_PATIENCE = timedelta(days=7)
# While a connection is tried, no signal is heard.
_CONNECTING = timedelta(seconds=2)
# No wait is silent for longer, in seconds.
_SILENCE = 10.0


class JoinError(ConnectionError):
    """The processes of the job cannot be joined."""


class LostProcessError(ConnectionError):
    """Another process of the job has ended, so this one cannot go on."""


class Processes:
    """This process among those of its job.

    Every method but `share` must be called by all processes, in the same order.

    Attributes:
        number: of this process, from 0.
        count: how many there are.
    """

    def __init__(self, number: int = 0, count: int = 1):
        self.number, self.count = number, count

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.number == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.count == 1:
            return tensor
        result = tensor.clone(memory_format=torch.contiguous_format)
        self._call(dist.all_reduce, result)
        return result

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor, in the order of their numbers; shapes and dtypes must be the same."""
        if self.count == 1:
            return [tensor]
        result = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.count)]
        self._call(dist.all_gather, result, tensor.contiguous())
        return result

    def gather_rows(self, rows: Tensor, summed: bool) -> Tensor:
        """Every process's rows, one process's after the other's, with derivatives.

        Args:
            rows: (B, ...), of the same shape in every process.
            summed: whether the derivatives of the result, in each process, are a part of them whose sum over the processes is the
                whole; otherwise each process has the whole.
        """
        return _GatherRows.apply(rows, self, summed) if self.count > 1 else rows

    def gather_values(self, value: Any) -> list[Any]:
        """Every process's value, of types that JSON has."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(integers([len(text)]))
        texts = self.gather(torch.nn.functional.pad(text, (0, int(max(lengths)) - len(text))))
        return [json.loads(bytes(text[:length].tolist())) for text, length in zip(texts, lengths, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.sum(integers([flag])))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            self._call(dist.barrier)

    def _call(self, collective: Callable, *arguments: Any) -> None:
        try:
            work = collective(*arguments, async_op=True)
            # Of tensors on a GPU the stream waits, and not this thread.
            if not any(isinstance(argument, Tensor) and argument.is_cuda for argument in arguments):
                what = f"process {self.number} of {self.count}, counted from 0: waiting for the others"
                _wait_until(work.is_completed, (lambda: what) if self.first else None)
            work.wait()
        except RuntimeError as error:
            raise LostProcessError(
                f"process {self.number} of {self.count}, counted from 0: another process of this job has ended; its own message, "
                f"or torchrun's, says why ({first_line(error)})"
            ) from None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, processes: Processes, summed: bool) -> Tensor:
        context.processes, context.summed, context.count = processes, summed, len(rows)
        return torch.cat(processes.gather(rows))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if context.summed:
            gradient = context.processes.sum(gradient)
        first = context.processes.number * context.count
        return gradient[first : first + context.count], None, None


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Be part of the job that torchrun has started, if it has.

    Args:
        device: what tensors that are sent lie on, beside the CPU.

    Raises:
        JoinError: the others cannot be reached.
        ValueError: a variable of torchrun's is missing or wrong.
    """
    count = _variable("WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else 1
    if count == 1:
        yield Processes()
        return
    number = _variable("RANK", 0)
    if number >= count:
        raise ValueError(f"RANK: expected less than WORLD_SIZE, {count}, got {number}")
    _check_interfaces()
    store = _met(number, count)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    _in_background(
        lambda: dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_PATIENCE),
        f"process {number} of {count}, counted from 0: connecting to the others",
    )
    try:
        yield Processes(number, count)
    except KeyboardInterrupt:
        # Gloo's threads wait for the others as long as these live, and Python's end would wait for them.
        _leave_at_end()
        raise
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _check_interfaces() -> None:
    there = [name for _, name in socket.if_nameindex()]
    for name in filter(None, os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if name not in there:
            raise ValueError(f"GLOO_SOCKET_IFNAME: expected an interface of this machine ({', '.join(there)}), got {name!r}")


def _met(number: int, count: int) -> dist.Store:
    """Wait until all processes of the job are there; what they write to one another in."""
    address, port = os.environ.get("MASTER_ADDR", ""), _variable("MASTER_PORT", 1, 65535)
    if not address:
        raise ValueError("MASTER_ADDR: expected the address of process 0, which torchrun sets, found no such variable")
    place = f"process {number} of {count}, counted from 0"
    remedy = "WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT are set; unset WORLD_SIZE to run as one process"
    # torchrun's own process holds the store, otherwise process 0 does.
    is_master = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not is_master:
        _wait_until(
            partial(_listens, address, port), lambda: f"{place}: waiting for process 0 at {address}:{port}; {remedy}", pause=0.5
        )
    what = f"{place}: {'listening' if is_master else 'connecting'} at {address}:{port}"
    # Whoever listens there may be no store, and never answer.
    store = _in_background(
        lambda: dist.TCPStore(address, port, None, is_master, timeout=_CONNECTING, wait_for_workers=False, multi_tenant=True),
        what,
        remedy,
    )
    # One process may need longer for what comes next than another.
    store.set_timeout(_PATIENCE)
    store = dist.PrefixStore(f"caan/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    _in_background(lambda: store.set(f"here/{number}", ""), what)

    missing: list[int] = []

    def all_here() -> bool:
        # What is told is what was seen: the last one may come before the line is written.
        missing[:] = [other for other in range(count) if not store.check([f"here/{other}"])]
        return not missing

    try:
        _wait_until(
            all_here,
            lambda: f"{place}: waiting for process {', '.join(map(str, missing))} at {address}:{port}; {remedy}",
            pause=0.1,
        )
    except RuntimeError as error:
        raise JoinError(f"{what}: expected process 0 to stay there: {first_line(error)}") from None
    return store


def _listens(address: str, port: int) -> bool:
    """Whether somebody is there. torch's own attempt prints a line for every failure."""
    try:
        socket.create_connection((address, port), timeout=_CONNECTING.total_seconds()).close()
    except OSError:
        return False
    return True


def _in_background(call: Callable[[], Any], what: str, remedy: str = "") -> Any:
    """Wait for a call that hears no signals, and hear them.

    Args:
        call: what is waited for.
        what: says what that is, in a wait that lasts and in an error.
        remedy: what may help, for a wait that lasts.

    Returns:
        The call's result.

    Raises:
        JoinError: it failed.
    """
    results: list[Any] = []
    failed: list[RuntimeError | ValueError] = []

    def run() -> None:
        try:
            results.append(call())
        except (RuntimeError, ValueError) as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        _wait_until(lambda: not thread.is_alive(), lambda: f"{what}; {remedy}" if remedy else what)
    except KeyboardInterrupt:
        _leave_at_end()
        raise
    if failed:
        raise JoinError(f"{what}: expected to succeed: {first_line(failed[0])}") from None
    return results[0]


def _wait_until(done: Callable[[], bool], say: Callable[[], str] | None, pause: float = 0.01) -> None:
    """Ask again and again, soon at first and then every `pause` seconds, so that signals are heard; a wait that lasts is told on
    stderr."""
    next_pause, told = 2e-5, time.monotonic()
    while not done():
        time.sleep(next_pause)
        next_pause = min(2 * next_pause, pause)
        if say and time.monotonic() - told > _SILENCE:
            warn(say())
            told = time.monotonic()


def _leave_at_end() -> None:
    """End the process where Python ends, with the exit status of Ctrl-C, and wait for no thread."""

    def leave() -> None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(130)

    atexit.register(leave)


def _variable(name: str, least: int, most: int = 2**31) -> int:
    text = os.environ.get(name, "")
    if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
        upto = f"to {most}" if most < 2**31 else "on"
        raise ValueError(f"{name}: expected a whole number from {least} {upto}, as torchrun sets it, got {text!r}")
    return int(text)

"""The processes of one job, as torchrun starts them. A job of one process is the same code, and nothing is sent."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# A process waits for the slowest one, which may have hours more to do. One that died is noticed by its closed connection.
_PATIENCE = timedelta(days=7)


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
        lengths = self.gather(torch.tensor([len(text)]))
        texts = self.gather(torch.nn.functional.pad(text, (0, int(max(lengths)) - len(text))))
        return [json.loads(bytes(text[:length].tolist())) for text, length in zip(texts, lengths, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.sum(torch.tensor([int(flag)])))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            self._call(dist.barrier)

    def _call(self, collective: Callable, *arguments: Any) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:
            raise LostProcessError(
                f"process {self.number} of {self.count}, counted from 0: another process of this job has ended; its own message, "
                f"or torchrun's, says why ({str(error).splitlines()[0]})"
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
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()

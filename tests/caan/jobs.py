"""Functions run in several processes, as torchrun would start them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from caan.processes import joined

_COUNT = 2


def run_job(function: Callable, *arguments: Any) -> list[int]:
    """Call function(processes, *arguments) in two new processes; their exit codes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_run, args=(function, number, port, arguments)) for number in range(_COUNT)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
        # A process that hangs is a failure of its own kind.
        job.kill() if job.is_alive() else None
        job.join()
    return [job.exitcode for job in jobs]


def _run(function: Callable, number: int, port: int, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(_COUNT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(torch.device("cpu")) as processes:
        function(processes, *arguments)

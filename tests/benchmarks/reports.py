"""Reports of the benchmark, made up."""

from measure import MIB
from report import Report, Row


def row(name, seconds=1.0, error=1e-7, workload="w", shape="2 x 3", pairs=6, **more):
    checks = {"scores": error}, {"scores": 2e-6}, {"scores": 0}
    work = {"flops": 3e9, "tanh": 2e6, "bytes": 0.0}
    return Row(workload, name, name == "cpu", shape, 7, pairs, 3, seconds, 0.05, 2 * MIB, *checks, work, **more)


def full_report():
    header = {"device": "a CPU", "threads": "2 of 2 cores", "torch": "2", "instruction_set": "avx2", "dtype": "float32"}
    header |= {"features": "random", "commit": "abc", "date": "2026-01-02"}
    floor = {"flops_per_second": 1e11, "matrix_product": "torch.mm", "tanh_per_second": 1e9, "tanh": "torch.tanh"}
    floor |= {"bytes_per_second": 1e10, "reading": "torch.sum"}
    return Report(header, floor, [row("cpu")], ["a note"])

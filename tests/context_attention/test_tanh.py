"""The kernels' own tanh."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

import caan_kernels  # noqa: F401

tanh_ = torch.ops.caan_kernels.tanh_


def every_float(low, high):
    """All float32 numbers from `low` to `high`, both above 0."""
    first, last = (int(torch.tensor(x).view(torch.int32)) for x in (low, high))
    return torch.arange(first, last + 1, dtype=torch.int32).view(torch.float32)


def largest_error_in_ulp(low, high):
    x = every_float(low, high)
    expected = x.double().tanh()
    found = x.clone()
    tanh_(found)
    ulp = torch.nextafter(expected.float(), torch.tensor(2.0)).double() - expected.float().double()
    return float(((found.double() - expected).abs() / ulp).max())


def test_float32_is_within_4_ulp():
    # Every number from 2^-4, where tanh starts to differ from x, to where it is 1, in parts that fit the memory.
    bounds = [2.0**-4, 0.25, 1.0, 3.0, 10.0]
    assert max(largest_error_in_ulp(*part) for part in itertools.pairwise(bounds)) <= 4
    tiny = torch.logspace(-44, -2, 10_001)
    found = tiny.clone()
    tanh_(found)
    torch.testing.assert_close(found.double(), tiny.double().tanh(), rtol=4 * 2.0**-23, atol=2e-45)


def test_special_numbers():
    x = torch.tensor([0.0, -0.0, 50.0, -50.0, float("inf"), -float("inf"), float("nan"), 1e-40])
    found = x.clone()
    tanh_(found)
    torch.testing.assert_close(found, x.tanh(), equal_nan=True, rtol=0, atol=0)
    assert found[1].signbit()


def test_is_odd_and_at_most_1():
    x = torch.linspace(0, 12, 100_001)
    positive, negative = x.clone(), -x
    tanh_(positive)
    tanh_(negative)
    assert torch.equal(positive, -negative)
    assert positive.max() <= 1


def test_float64():
    x = torch.linspace(-12, 12, 10_001, dtype=torch.float64)
    found = x.clone()
    tanh_(found)
    torch.testing.assert_close(found, x.tanh(), rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(2, dtype=torch.float16), "values: expected dtype float32 or float64, got torch.float16"),
        (torch.ones(2, 3).T, r"values: expected a contiguous tensor, got strides \(1, 3\)"),
    ],
    ids=["dtype", "strides"],
)
def test_says_what_came(values, message):
    with pytest.raises(RuntimeError, match=message):
        tanh_(values)


def test_generic_kernels():
    # A set is chosen once for a process. The generic one may lack fused multiply-adds, so it rounds more often.
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_tanh as t;"
        "assert t.torch.ops.caan_kernels.cpu_isa() == 'generic';"
        "print(max(t.largest_error_in_ulp(*part) for part in ((0.25, 1.0), (1.0, 10.0))))"
    )
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]
    run = subprocess.run(command, env={**os.environ, "CAAN_CPU_ISA": "generic"}, capture_output=True, text=True, check=True)
    assert float(run.stdout) <= 4

"""Which backend runs, and the reasons given when one cannot."""

import cases
import pytest
import torch

import caan_kernels as ck
from caan_kernels import backends


def test_every_backend_gives_a_reason():
    available = ck.available_backends()
    assert set(available) == {"reference", "cpu", "triton", "cuda"}
    assert all(isinstance(usable, bool) and reason for usable, reason in available.values())
    assert available["reference"][0]
    assert available["cpu"][0], available["cpu"][1]
    assert available["triton"] == available["cuda"] == (False, "not part of this release")


def test_build_info():
    info = ck.build_info()
    assert info["version"] and info["compiler"] and info["torch_target_abi"]
    assert info["cpu_instruction_set"] in info["cpu_instruction_sets"]
    assert isinstance(info["cuda_architectures"], list)
    assert info["cpu_instruction_set"] in ck.available_backends()["cpu"][1]


def test_cpu_is_chosen_for_cpu_tensors():
    for dtype in cases.DTYPES:
        assert backends.select("auto", torch.device("cpu"), dtype) == "cpu"
        assert backends.select("auto", torch.device("cpu"), dtype, gradient=True) == "cpu"
    assert backends.select("auto", torch.device("cuda", 0), torch.float32) == "reference"
    assert backends.select("auto", torch.device("cpu"), torch.float32, gradient=True, maps=True) == "reference"


@pytest.mark.parametrize(
    ("name", "device", "dtype", "wanted", "reason"),
    [
        ("triton", "cuda", torch.float32, {}, "not part of this release"),
        ("cuda", "cuda", torch.float32, {}, "not part of this release"),
        ("cpu", "cuda", torch.float32, {}, "must be on the CPU, these are on cuda"),
        ("cpu", "cpu", torch.float8_e4m3fn, {}, "no kernels for torch.float8_e4m3fn"),
        ("cpu", "cpu", torch.float32, {"maps": True, "gradient": True}, "maps have no derivative"),
    ],
)
def test_reasons(name, device, dtype, wanted, reason):
    usable, found = backends.can_run(name, torch.device(device), dtype, **wanted)
    assert not usable
    assert reason in found
    with pytest.raises(RuntimeError, match=f"backend '{name}' cannot run this call: .*{reason}"):
        backends.select(name, torch.device(device), dtype, **wanted)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(backends.cpu, "MISSING", "the compiled library is missing")
    case = cases.problem("odd", torch.float32)
    assert ck.available_backends()["cpu"] == (False, "the compiled library is missing")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run this call: the compiled library is missing"):
        case.call(backend="cpu")
    assert torch.equal(case.call(), case.call(backend="reference"))


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"backend: expected 'auto', 'reference', .*, got 'fpga'"):
        cases.problem("odd").call(backend="fpga")

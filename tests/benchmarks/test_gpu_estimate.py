"""The estimate of the CUDA kernels, from the machine code of the library that is installed."""

import json
from pathlib import Path

import cuda_report
import gpu_estimate
import pytest

import caan_kernels as ck

MEASURED = Path(gpu_estimate.__file__).parent / "results" / "cuda_nvidia_h200.json"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if not any(x.startswith("90a") for x in ck.build_info()["cuda_architectures"]):
        pytest.skip("caan_kernels was built without code for sm_90a")
    pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
    cubins = cuda_report.cubins_of(cuda_report.LIBRARY, tmp_path_factory.mktemp("cubins"))
    return gpu_estimate.codes(cubin for cubin in cubins if "sm_90a" in cubin.name)


def test_rates_are_those_measured():
    rates = {row["name"]: row["value"] for row in json.loads(MEASURED.read_text())["rates"]}
    clocks = {pattern: value for pattern, _, value in gpu_estimate.RATES}
    assert clocks[r"HMMA\.16816"] == pytest.approx(2048 / rates["mma.sync.m16n8k16.bf16"], rel=1e-3)
    assert clocks["MUFU"] == pytest.approx(32 / rates["tanh.approx.f32"], rel=1e-3)
    assert clocks["LDSM"] == pytest.approx(512 / rates["ldmatrix.x4"], rel=1e-3)
    assert clocks["LDS|STS"] == pytest.approx(128 / rates["ld.shared.u32"], rel=1e-3)
    assert clocks["SHFL|MOVM"] == pytest.approx(32 / rates["shfl.sync.bfly"], rel=1e-3)


def test_instructions_find_their_pipes():
    found = {
        text: gpu_estimate.pipe_of(text)
        for text in ("HMMA.16816.F32.BF16 R4, R8, R2, R4", "@P0 MUFU.TANH R1, R2", "LDSM.16.MT88.4 R4, [R1]", "@!PT LDS RZ, [RZ]")
    }
    assert [x and x[0] for x in found.values()] == ["tensor", "special", "shared", None]


def test_a_pair_by_hand(kernels):
    """36 regions and 13 words: products of 40 by 16 cells, 24 a step of 16 hidden columns, tanh of 56 rows a column."""
    of = gpu_estimate.pair(kernels, 36, 13, 1024, 1024).phases
    product = 2048 / 1355.5
    assert of["products"]["tensor"] == pytest.approx(64 * 10 * product * 7 / 8, rel=0.01)
    assert of["words"]["tensor"] + of["regions"]["tensor"] == pytest.approx(64 * 24 * product, rel=0.01)
    assert of["words"]["special"] + of["regions"]["special"] == pytest.approx(56 * 1024 / 16, rel=0.01)


@pytest.mark.parametrize("sizes", gpu_estimate.SHAPES, ids=str)
def test_every_shape_has_an_estimate(kernels, sizes):
    for hidden in (64, 1024):
        found = gpu_estimate.pair(kernels, *sizes, 1024, hidden)
        assert 0 < found.overlapped <= found.apart


def test_figures(kernels):
    """Where the kernels stand; a change that costs more than a tenth shows here."""
    sets = gpu_estimate.report(kernels)["sets"]
    assert sets["coco, H = 1024"]["overlapped"] < 27 and sets["coco, H = 1024"]["apart"] < 33
    assert sets["coco, H = 64"]["overlapped"] < 12
    per_product = {name: row["overlapped"] / row["multiply_adds"] for name, row in sets.items()}
    assert per_product["f30k, H = 1024"] < 1.25 * per_product["coco, H = 1024"]

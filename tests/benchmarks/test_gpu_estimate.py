"""The estimate of the CUDA kernels, from the machine code of the library that is installed."""

import json
from pathlib import Path

import cuda_report
import gpu_estimate
import pytest

import caan_kernels as ck

MEASURED = Path(gpu_estimate.__file__).parent / "results" / "cuda_nvidia_h200.json"


@pytest.fixture(scope="module")
def cubins(tmp_path_factory):
    if not any(x.startswith("90a") for x in ck.build_info()["cuda_architectures"]):
        pytest.skip("caan_kernels was built without code for sm_90a")
    pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
    found = cuda_report.cubins_of(cuda_report.LIBRARY, tmp_path_factory.mktemp("cubins"))
    return [cubin for cubin in found if "sm_90a" in cubin.name]


@pytest.fixture(scope="module")
def kernels(cubins):
    return gpu_estimate.codes(cubins)


@pytest.fixture(scope="module")
def in_float32(cubins):
    return gpu_estimate.codes(cubins, "float32")


@pytest.fixture(scope="module")
def report(kernels, in_float32):
    return gpu_estimate.report(kernels, in_float32)


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
    assert of["products"]["tensor"] == pytest.approx(64 * 10 * product, rel=0.01)
    assert of["words"]["tensor"] + of["regions"]["tensor"] == pytest.approx(64 * 24 * product, rel=0.01)
    assert of["words"]["special"] + of["regions"]["special"] == pytest.approx(56 * 1024 / 16, rel=0.01)


def test_regions_are_read_once_for_two_captions(kernels):
    """Of 16 columns: three matrices of regions for both captions of a warp, and one of each caption's words."""
    of = gpu_estimate.pair(kernels, 36, 13, 1024, 1024).phases
    matrices = 64 * (3 / 2 + 1) * 512 / 125.92
    for phase in ("words", "regions"):
        assert matrices < of[phase]["shared"] < 1.5 * matrices


def test_a_pair_in_float32_by_hand(in_float32):
    """A step of four rows reads four numbers of the matrix and one of the panel."""
    steps = gpu_estimate.panel_steps(in_float32["score_kernel", ""])
    read = 128 / 63.977
    assert steps["times_panel"]["shared"] == pytest.approx(5 * read, rel=0.01)
    of = gpu_estimate.one_pair(steps, 36, 13, 1024, 1024, False).phases
    assert of["times_panel"]["shared"] == pytest.approx(32 * 3 * 9 * 13 * 5 * read, rel=0.01)
    assert of["tanh"]["special"] == pytest.approx(32 * 49 * 2 * 32 / 15.998, rel=0.01)


def test_a_training_step(report):
    """More with more hidden columns, and the sum of its parts."""
    wide, narrow = (report["training"][f"B = 128, H = {hidden}, ms"] for hidden in (1024, 64))
    for found in (wide, narrow):
        for x, parts in found["parts"].items():
            assert found[x] == pytest.approx(sum(parts.values())) and min(parts.values()) > 0
    assert narrow["apart"] < wide["apart"]


@pytest.mark.parametrize("sizes", gpu_estimate.SHAPES, ids=str)
def test_every_shape_has_an_estimate(kernels, sizes):
    for hidden in (64, 1024):
        found = gpu_estimate.pair(kernels, *sizes, 1024, hidden)
        assert 0 < found.overlapped <= found.apart


def test_figures(report):
    """Where the kernels stand; a change that costs more than a tenth shows here."""
    sets = report["sets"]
    assert sets["coco, H = 1024"]["overlapped"] < 19 and sets["coco, H = 1024"]["apart"] < 27
    assert sets["coco, H = 64"]["overlapped"] < 10
    assert report["float32"]["36 x 13, H = 1024"]["overlapped"] < 1300
    assert report["training"]["B = 128, H = 1024, ms"]["overlapped"] < 4.5
    per_product = {name: row["overlapped"] / row["multiply_adds"] for name, row in sets.items()}
    assert per_product["f30k, H = 1024"] < 1.26 * per_product["coco, H = 1024"]

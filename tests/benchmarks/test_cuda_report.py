"""The machine code of the library that is installed: what CI has built, for two architectures."""

import cuda_report
import pytest

import caan_kernels as ck

pytestmark = pytest.mark.skipif(
    not ck.build_info()["cuda_architectures"], reason="caan_kernels was built without CUDA kernels: there was no nvcc"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
    folder = tmp_path_factory.mktemp("cubins")
    return cuda_report.measure(cuda_report.cubins_of(cuda_report.LIBRARY, folder), cuda_report.launches(folder))


def test_no_kernel_spills(report):
    assert not cuda_report.faults(report)
    built = {f"sm_{x.partition('+')[0]}" for x in ck.build_info()["cuda_architectures"]}
    assert {(row["kernel"], row["architecture"]) for row in report["kernels"]} == {
        (k, a) for k in cuda_report.KERNELS for a in built
    }


def test_tiles_are_on_tensor_cores(report):
    tiles = [row for row in report["kernels"] if row["kernel"] == "tile_kernel"]
    assert {row["dtype"] for row in tiles} == {"bfloat16", "float16"}
    assert all(row["tensor_instructions"] >= 50 and row["special_instructions"] >= 50 for row in tiles)


def test_sums_are_fused_alike_in_all_company(report):
    """A pair is scored in one kernel among all pairs and in another in a list, and must get the same bits."""
    counts = {}
    for row in report["kernels"]:
        if row["kernel"] == "tile_kernel":
            tiles, together, *_ = row["shape"].split(", ")
            counts.setdefault((row["architecture"], row["dtype"], tiles, together), []).append(row["fused_multiply_adds"])
    assert all(len(found) == 4 and len(set(found)) == 1 for found in counts.values()), counts


def test_faults_are_found(report):
    tile = next(row for row in report["kernels"] if row["kernel"] == "tile_kernel")
    for wrong in ({"spilled_bytes": 8}, {"tensor_instructions": 0}, {"shared_bytes": 100 * 1024}, {"threads": 1024}):
        assert cuda_report.faults({"kernels": [tile | wrong]}) == [cuda_report.line(tile | wrong)]


def test_estimate(report):
    if not any(row["architecture"] == "sm_90a" for row in report["kernels"]):
        pytest.skip("not built for sm_90a")
    clocks = cuda_report.estimate_of(report)
    # A warp's share of a hidden column: tanh of 40 regions and 16 words. Products of a pair: 31.5 for 16 columns, of 4,096 flops.
    assert clocks.special == pytest.approx(56 * 1024 / 16, rel=0.15)
    assert clocks.tensor == pytest.approx(31.5 * 4096 * 64 / 2048, rel=0.1)
    assert "| bytes from the L2 cache |" in cuda_report.tables({**report, "nvcc": "13.0", "date": "today"})

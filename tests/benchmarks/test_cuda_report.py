"""The machine code of the library that is installed: in CI, for sm_90."""

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


def test_scores_are_on_tensor_cores(report):
    rows = [row for row in report["kernels"] if row["kernel"] in ("tile_kernel", "large_kernel")]
    found = {(row["kernel"], row["dtype"]) for row in rows}
    assert found == {(x, dtype) for x in ("tile_kernel", "large_kernel") for dtype in ("bfloat16", "float16", "float32")}
    assert all(row["tensor_instructions"] >= 14 and row["special_instructions"] >= 16 for row in rows)


def test_faults_are_found(report):
    tile = next(row for row in report["kernels"] if row["kernel"] == "tile_kernel")
    for wrong in ({"spilled_bytes": 8}, {"tensor_instructions": 0}, {"shared_bytes": 100 * 1024}, {"resident_warps": 0}):
        assert cuda_report.faults({"kernels": [tile | wrong]}) == [cuda_report.line(tile | wrong)]

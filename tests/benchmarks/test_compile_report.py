"""What the Triton kernels compile to without a GPU: how many there are, and that none spills."""

import os
import random
import subprocess
import sys
from pathlib import Path

import compile_report
import machine_code
import pytest
import torch
import triton

from caan_kernels.context_attention.call import CallGradient, Projection, Side
from caan_kernels.context_attention.gpu import launch

WIDTH, HIDDEN = 96, 130


def test_batches_of_any_shape_share_their_kernels():
    """Over fifty random batches a kernel is compiled once for each block of regions and words, and no more."""
    draw = random.Random(0)
    with compile_report.recorded() as launches:
        for _ in range(50):
            images, captions, words = draw.randint(2, 99), draw.randint(2, 99), draw.randint(33, 64)
            V, U = torch.zeros(images, 36, WIDTH, dtype=torch.float16), torch.zeros(captions, words, WIDTH, dtype=torch.float16)
            VQ, UQ = V.new_zeros(images, 36, 2 * HIDDEN), U.new_zeros(captions, words, WIDTH + 2 * HIDDEN)
            w = V.new_zeros(HIDDEN)
            regions = Side(V, VQ, torch.randint(0, 37, (images,)))
            call = compile_report.packed(regions, Side(U, UQ, torch.randint(0, words + 1, (captions,))), w)
            launch.pair_scores(call)
            launch.pair_scores_backward(CallGradient(torch.ones(images, captions), call))
            projection = Projection(V, V.new_zeros(WIDTH, 2 * HIDDEN), regions.lengths, "triton")
            launch.project(projection)
    compiled: dict[str, set[str]] = {}
    for each in launches:
        compiled.setdefault(each.kernel, set()).add(repr(each))
    # Or threads that hold the same sum may round it differently.
    assert not any(each.fusion for each in launches)
    # 16, 32 and 48 regions; 16 and 32 words.
    assert set(compiled) == {*compile_report.ATTENTION} - {"map_kernel"}
    assert len(compiled.pop("tile_kernel")) == 6
    assert {len(found) for found in compiled.values()} == {1}


@pytest.mark.long
def test_no_kernel_spills_and_half_precision_is_on_tensor_cores():
    """On the architecture with most instructions of its own; tools/release_check.sh compiles for all."""
    report = compile_report.measure(True, [90])
    assert not compile_report.faults(report)
    compiled = {(row["kernel"], row["architecture"]) for row in report["kernels"]}
    assert compiled == {(name, "sm_90") for name in compile_report.ATTENTION}
    half = [row for row in report["kernels"] if row["dtype"] == "bfloat16"]
    assert half
    assert all(row["tensor_instructions"] for row in half if compile_report.multiplies(row))
    assert_faults_are_found(report)


def test_kernels_of_max_similarity_are_compiled():
    launches = {repr(x): x for x in compile_report.searches_of(torch.bfloat16, 128)}.values()
    assert {x.kernel for x in launches} == {"plan_kernel", *compile_report.SEARCH}
    search = next(x for x in launches if x.kernel == "search_kernel")
    found = compile_report.compile_for(search, 90)
    assert found.tensor_instructions and not found.spilled_bytes


def found_on_disk() -> bool:
    """Whether Triton has MaxSim's search from its cache, after it was asked to compile it."""
    search = next(x for x in compile_report.searches_of(torch.bfloat16, 128) if x.kernel == "search_kernel")
    hits: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.compilation, "listener", lambda *, cache_hit, **_: hits.append(cache_hit))
        compile_report.compile_for(search, 90)
    (hit,) = hits
    return hit


def test_another_process_does_not_compile_again(tmp_path, monkeypatch):
    """Nothing in a kernel's key differs between processes, such as an address or the order of a set."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert not found_on_disk()
    paths = Path(__file__).parent, Path(compile_report.__file__).parent, Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONHASHSEED": "7"}
    program = "import test_compile_report; print(test_compile_report.found_on_disk())"
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.stdout == "True\n", run.stderr


def test_projections_by_tf32_need_no_fence():
    """Their copies run in the background, so their products are Ampere's."""
    with compile_report.float32_products("tf32"):
        launches = compile_report.launches_of(torch.float32, 36, 13)
    (product,) = {repr(x): x for x in launches if x.kernel == "product_kernel"}.values()
    found = compile_report.compile_for(product, 90)
    assert found.tensor_instructions and not found.wgmma_products


def test_asynchronous_products_and_fences_are_counted():
    of_ampere = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {};"
    of_hopper = "wgmma.fence.sync.aligned;\nwgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {};"
    of_blackwell = "tcgen05.commit.cta_group::1.b64 [%r1];\n@%p1 tcgen05.mma.cta_group::1.kind::tf32 [%r2], %rd1, %rd2, %r3, %p2;"
    ptx = "\n".join([of_ampere, "fence.proxy.async.shared::cta;", *2 * [of_hopper], *3 * [of_blackwell]])
    assert compile_report.asynchronous(ptx) == {"wgmma_products": 2, "tcgen05_products": 3, "proxy_fences": 1}


def test_no_kernel_has_products_of_hopper_or_blackwell():
    """docs/triton.md, "Tensor cores": nothing here executes them. Maps multiply as derivatives do, and are smaller."""
    launches = compile_report.launches_of(torch.bfloat16, 36, 13)
    (maps,) = {repr(x): x for x in launches if x.kernel == "map_kernel"}.values()
    for architecture in (90, 100):
        found = compile_report.compile_for(maps, architecture)
        assert found.tensor_instructions and not found.wgmma_products and not found.tcgen05_products


def assert_faults_are_found(report):
    for fault in ("spilled_bytes", "wgmma_products", "tcgen05_products", "shared_bytes"):
        row = {**report["kernels"][0], fault: 2**20}
        assert compile_report.faults({"kernels": [row]}) == [compile_report.line(row)]
    multiplying = next(row for row in report["kernels"] if row["kernel"] == "large_kernel")
    assert compile_report.faults({"kernels": [{**multiplying, "dtype": "bfloat16", "tensor_instructions": 0}]})


def test_warps_of_a_multiprocessor():
    """By what NVIDIA's cuda_occupancy.h says: limited by warps, blocks, registers and shared memory."""
    blocks = {(4, 32, 0): 64, (1, 32, 0): 32, (8, 255, 0): 8, (2, 168, 0): 12, (8, 255, 115 * 1024): 8, (4, 100, 57 * 1024): 12}
    assert {block: machine_code.resident_warps("sm_90a", *block) for block in blocks} == blocks
    assert machine_code.resident_warps("sm_86", 12, 255, 0) == machine_code.resident_warps("sm_86", 4, 32, 100 * 1024) == 0
    assert machine_code.resident_warps("sm_86", 1, 32, 0) == 16 and machine_code.resident_warps("sm_120", 4, 32, 0) == 48


def test_what_an_instruction_waits_for_is_left_out():
    code = "        /*0010*/  @UP0 UIADD3.64 UR4, UR6, URZ         &req={1}       ?trans2;  /* 0x000000 */"
    assert list(machine_code.instructions(code)) == [(16, "@UP0 UIADD3.64 UR4, UR6, URZ")]

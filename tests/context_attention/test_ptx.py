"""The PTX that nvcc and Triton make of the kernels, executed: golden cases, and faults planted in it that have to be found."""

import re
from dataclasses import replace
from functools import partial
from unittest import mock

import cases
import pytest
import torch
from support.ptx import PtxError, compilers, cuda_launches

from caan_kernels.context_attention.gpu import launch

ops = torch.ops.caan_kernels
DTYPE = "bfloat16"
PRODUCT, GRADIENTS = "product_tile_kernel<bfloat16>", "gradient_tile_kernel<bfloat16>"

pytestmark = [
    pytest.mark.skipif(not cases.EMULATED, reason="launches are taken from the emulator: tests/test_emulated.py"),
    pytest.mark.skipif(compilers.find_nvcc() is None, reason="there is no nvcc"),
    pytest.mark.usefixtures("poisoned_memory"),
]


def assert_golden(name, backend):
    """Scores and gradients of a stored case, to the bounds of test_accuracy.py."""
    path = next(path for path in cases.GOLDEN if path.stem == name)
    case, options, scores, grad_scores, gradients = cases.golden(path)
    case = case.to(torch.bfloat16)
    found, found_gradients = cases.run(case, grad_scores, **options, backend=backend)
    plain, plain_gradients = cases.run(case, grad_scores, **options, backend="reference")
    assert cases.score_error(found, scores) <= max(2**-6, 2 * cases.score_error(plain, scores))
    for tensor, gradient in gradients.items():
        of_plain = cases.gradient_error(plain_gradients[tensor], gradient)
        assert cases.gradient_error(found_gradients[tensor], gradient) <= max(1e-5, 3 * of_plain), tensor


@pytest.mark.parametrize("name", ["square_small", "one_region", "full_36x13"])
def test_golden(name):
    """Widths that tensor cores take, and others; one piece of columns, and whole tiles of rows."""
    with cuda_launches.interpreted(DTYPE) as launched:
        assert_golden(name, "cuda")
    assert launched


def test_several_pieces():
    """Widths of which a kernel brings a part at a time."""
    case = cases.problem((2, 10, 3, 9, 136, 72), torch.bfloat16)
    with cuda_launches.interpreted(DTYPE):
        found = case.call(backend="cuda")
    expected, plain = cases.oracle(case)[0], case.call(backend="reference")
    assert cases.score_error(found, expected) <= 2.5 * cases.score_error(plain, expected) + 1e-6


def score_large(words, edit=None):
    """Scores of an image beyond a tile and captions of these lengths by PTX, edited or not; what they are, and plain PyTorch's."""
    case = cases.problem((1, 66, len(words), max(words), 16, 16), torch.bfloat16, lengths=False)
    case = replace(case, word_lengths=torch.tensor(words))
    case.words[torch.arange(max(words)) >= case.word_lengths[:, None]] = torch.nan
    classes = {1 if n <= 16 else 2 if n <= 32 else 4 if n <= 64 else 8 for n in words}
    with cuda_launches.interpreted(DTYPE, edit) as launched:
        found = case.call(backend="cuda")
    assert {f"large_kernel<Large<{strips}>,bfloat16>" for strips in classes} <= set(launched)
    return found, cases.oracle(case)[0], case.call(backend="reference")


def test_large_pairs():
    """A class of words each."""
    found, expected, plain = score_large([9, 20, 40, 70])
    assert cases.score_error(found, expected) <= 2.5 * cases.score_error(plain, expected) + 1e-6


def score_single(words, edit=None):
    """The same in float32, of an image of 20 regions: what they are by PTX, and in float64."""
    case = cases.problem((1, 20, len(words), max(words), 16, 16), torch.float32, lengths=False)
    case = replace(case, word_lengths=torch.tensor(words))
    case.words[torch.arange(max(words)) >= case.word_lengths[:, None]] = torch.nan
    with cuda_launches.interpreted("float", edit) as launched:
        found = case.call(backend="cuda")
    classes = {1 if n <= 16 else 2 if n <= 32 else 4 for n in words}
    assert {f"large_kernel<Single<{strips}>,float>" for strips in classes} <= set(launched)
    return found, cases.oracle(case)[0]


def test_float32():
    """Words of one strip, swept 128 columns at a time, and of several, 64 at a time."""
    found, expected = score_single([9, 40])
    assert cases.score_error(found, expected) <= 1e-6


def differentiate(edit=None, dtype=DTYPE):
    """A problem whose pairs fill two slots several times, one in float32, and its gradients as PTX computes them, edited or not."""
    case = cases.problem((2, 5, 3, 6, 16, 8), torch.float32 if dtype == "float" else torch.bfloat16)
    with cuda_launches.interpreted(dtype, edit) as launched, mock.patch.object(launch, "SCRATCH_BYTES", 44000):
        found = cases.run(case, torch.ones(2, 3), backend="cuda")[1]
    assert f"gradient_tile_kernel<{dtype}>" in launched
    return case, found


def test_rounds_of_gradients():
    """In float32; the golden cases have bfloat16 in one round."""
    case, found = differentiate(dtype="float")
    expected, plain = (of(case, torch.ones(2, 3))[1] for of in (cases.oracle, partial(cases.run, backend="reference")))
    for tensor, gradient in found.items():
        assert cases.gradient_error(gradient, expected[tensor]) <= 3 * cases.gradient_error(plain[tensor], expected[tensor]) + 1e-5


def project(edit=None):
    """A product of several pieces as its PTX makes it, edited or not, and what it should be."""
    generator = torch.Generator().manual_seed(0)
    items, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in ((3, 50, 136), (136, 72)))
    lengths = torch.tensor([50, 7, 0])
    real = items.masked_fill((torch.arange(50) >= lengths[:, None])[..., None], 0)
    with cuda_launches.interpreted(DTYPE, edit) as launched:
        found = ops.project(items, weight, lengths, "cuda")
    assert launched == [PRODUCT]
    return found, real.float() @ weight.float()


def editing(kernel: str, pattern: str, replacement: str, place: int = 0):
    """Puts something else for one match of a pattern, or for all where the place is None, in a kernel's PTX."""

    def edit(name: str, text: str) -> str:
        if name != kernel:
            return text
        start = text.index(f".entry {compilers.names_in(text)[name]}(")
        end = text.index("\n}", start)
        body = text[start:end]
        found = list(re.finditer(pattern, body))
        assert found, pattern
        for match in reversed(found if place is None else [found[place]]):
            body = body[: match.start()] + match.expand(replacement) + body[match.end() :]
        return text[:start] + body + text[end:]

    return edit


def test_product():
    found, expected = project()
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "replacement", "place", "message"),
    [
        (r"(st\.global\.u32 +\t?\[%rd\d+)\]", r"\1+1073741824]", 0, "out of bounds"),
        (r"(st\.global\.u32 +\t?\[%rd\d+)\]", r"\1+-1073741824]", 0, "out of bounds"),
        (r"(cp\.async[^;]*\], \[%rd\d+)\]", r"\1+1073741824]", 0, "out of bounds"),
        (r"(cp\.async[^;]*\], \[%rd\d+)\]", r"\1+2]", 0, "misaligned: expected a multiple of 16"),
        (r"(ldmatrix[^;]*\[%r\d+)\]", r"\1+8]", 0, "misaligned: expected a multiple of 16"),
        (r"(ldmatrix[^;]*\[%r\d+)\]", r"\1+65536]", 0, "shared memory is out of bounds"),
        (r"bar\.sync[^;]*;", "", 0, "race.*no barrier is in between"),
        (r"cp\.async\.wait_group[^;]*;", "", 0, "a copy to it is not waited for"),
        (r"cp\.async\.wait_group 0;", "cp.async.wait_group 1;", 0, "a copy to it is not waited for"),
        (r"cp\.async\.cg[^;]*;", "", 3, "shared memory is read and was never written"),
        (r"mma\.sync\.aligned\.m16n8k16", "mma.sync.aligned.m8n8k4", 0, "not known to the interpreter"),
    ],
    ids=[
        *("store_beyond", "store_before", "copy_beyond", "copy_misaligned", "rows_misaligned", "rows_beyond"),
        *("no_barrier", "no_wait", "short_wait", "no_copy", "unknown_instruction"),
    ],
)
def test_fault_is_found(pattern, replacement, place, message):
    with pytest.raises(PtxError, match=f"(?s){message}"):
        project(editing(PRODUCT, pattern, replacement, place))


@pytest.mark.parametrize(
    ("pattern", "replacement", "place", "message"),
    [
        (r"ld\.acquire\.gpu\.global\.u64 (%rd\d+), \[[^;]*;", r"mov.u64 \1, 9223372036854775807;", None, "race|never written"),
        (
            r"(selp\.b64[^,]*, )0(,(?:[^;]*;){3,4}[^;]*ld\.acquire)",
            r"\1-1000\2",
            0,
            "race: it (reads|writes) what thread .* of block",
        ),
        (r"ld\.acquire", "ld.relaxed", None, "race: it reads what thread .* of block . wrote"),
        (r"membar\.gl;([^@]*)red\.release", r"\1red.relaxed", 0, "race: it reads what thread .* of block . wrote"),
        (r"bar\.sync[^;]*;", "", -1, "race"),
        (r"bar\.sync[^;]*;(\s*setp\.lt\.s64 \t%p\d+, %rd\d+, 0;)", r"\1", 0, "race|never written"),
    ],
    ids=["no_wait", "next_round_does_not_wait", "no_acquire", "no_release", "no_barrier_before_end", "no_barrier_after_wait"],
)
def test_missing_order_of_turns_is_found(pattern, replacement, place, message):
    with pytest.raises(PtxError, match=f"(?s)gradient_tile_kernel.*({message})"):
        differentiate(editing(GRADIENTS, pattern, replacement, place))


@pytest.mark.parametrize("place", [13, 20, 27])
def test_missing_barrier_of_gradients_is_found(place):
    """Between what warps bring for each other, or leave in the block's slot."""
    with pytest.raises(PtxError, match="(?s)gradient_tile_kernel.*(race|never written)"):
        differentiate(editing(GRADIENTS, r"bar\.sync[^;]*;", "", place))


@pytest.mark.parametrize("place", [3, 4, 10])
def test_missing_barrier_of_a_large_pair_is_found(place):
    """Between what warps bring for each other, or leave in the block's slot."""
    with pytest.raises(PtxError, match="(?s)large_kernel.*race: it (reads|writes) what thread .* of block 0"):
        score_large([40], editing("large_kernel<Large<4>,bfloat16>", r"bar\.sync[^;]*;", "", place))


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"(mma[^{]*tf32\.f32 \{[^}]*\}, )\{(%\w+), (%\w+),", r"\1{\3, \2,"),
        (r"(mma[^{]*tf32\.f32 \{[^}]*\}, \{[^}]*\}, )\{(%\w+), (%\w+)\}", r"\1{\3, \2}"),
        (r"sub\.rn\.f32 (\t%\w+), [^;]*;(\s*mov\.b32)", r"mov.f32 \1, 0f00000000;\2"),
    ],
    ids=["left", "right", "small_parts"],
)
def test_wrong_product_of_float32_is_found(pattern, replacement):
    """Registers of factors change places; what TF32 leaves of a number is lost."""
    found, expected = score_single([9], editing("large_kernel<Single<1>,float>", pattern, replacement, None))
    assert not cases.score_error(found, expected) <= 1e-6


@pytest.mark.parametrize("swapped", [(5, 6), (6, 7), (9, 10), (1, 2), (1, 3)], ids=str)
def test_swapped_fragment_is_found(swapped):
    """Two registers of a tensor-core product change places: of the left factor, of the right one, of the sums."""
    first, second = swapped
    order = list(range(1, 11))
    order[first - 1], order[second - 1] = second, first
    registers = r"\{(%\w+), (%\w+), (%\w+), (%\w+)\}, \{(%\w+), (%\w+), (%\w+), (%\w+)\}, \{(%\w+), (%\w+)\}"
    names = [rf"\{i}" if i < 10 else rf"\g<{i}>" for i in order]
    changed = "{{{}, {}, {}, {}}}, {{{}, {}, {}, {}}}, {{{}, {}}}".format(*names)
    found, expected = project(editing(PRODUCT, registers, changed, 0))
    assert not torch.allclose(found.float(), expected, rtol=2**-8, atol=1e-2)


@pytest.fixture
def triton_launch(monkeypatch):
    """Where the Triton kernels are launched, in a package that takes CPU tensors for a GPU's."""
    pytest.importorskip("triton")
    from caan_kernels.context_attention.triton import launch
    from caan_kernels.core import triton

    monkeypatch.setattr(triton, "missing", lambda: "")
    monkeypatch.setattr(triton, "cannot_run", lambda device: "")
    return launch


def test_golden_of_triton(triton_launch):
    from support.ptx import triton_launches

    with triton_launches.interpreted(triton_launch) as launched:
        assert_golden("square_small", "triton")
    assert {"products_kernel", "tile_kernel", "finish_kernel", "pair_kernel"} <= set(launched)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"bar\.sync[^;]*;", "race.*no barrier is in between"),
        (r"cp\.async\.wait_group[^;]*;", "a copy to it is not waited for"),
    ],
    ids=["no_barrier", "no_wait"],
)
def test_fault_of_triton_is_found(pattern, message, triton_launch):
    from support.ptx import triton_launches

    def edit(name: str, text: str) -> str:
        edited, count = re.subn(pattern, "", text, count=1)
        assert count
        return edited

    # Triton copies rows of multiples of 16 without a register.
    items, weight = torch.ones(1, 40, 144, dtype=torch.bfloat16), torch.ones(144, 80, dtype=torch.bfloat16)
    with pytest.raises(PtxError, match=message), triton_launches.interpreted(triton_launch, edit):
        ops.project(items, weight, None, "triton")

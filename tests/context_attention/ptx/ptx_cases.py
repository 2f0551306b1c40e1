"""The classes of shapes that CUDA C++ kernels are for, a small call each."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple
from unittest import mock

import cases
import pytest
import torch
from support.ptx import compilers, cuda_launches

from caan_kernels.context_attention.gpu import launch

HALF, SINGLE = cases.HALF_DTYPES, (torch.float32,)
# What every call of all pairs with a backward launches.
PLANNING = ("plan_kernel", "count_schedule_kernel", "start_schedule_kernel", "place_schedule_kernel")


class Case(NamedTuple):
    """A call, and kernels that it has to launch.

    Attributes:
        kernels: keys, {} for the dtype.
        dtypes: what it is run in.
        regions: of each image.
        words: of each caption.
        widths: D and H.
        options: of the call.
        listed: whether pairs are a list, in no order.
        scratch: bytes for the slots in which backward works on pairs, or None for a call that is not differentiated.
        ieee: whether float32 products are IEEE's.
        quick: whether CI runs it, in the first dtype; tools/release_check.sh runs what CI does not.
    """

    kernels: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    regions: tuple[int, ...]
    words: tuple[int, ...]
    widths: tuple[int, int] = (16, 16)
    options: dict = cases.OPTIONS["default"]
    listed: bool = False
    scratch: int | None = None
    ieee: bool = False
    quick: bool = True

    def kernels_for(self, dtype: torch.dtype) -> set[str]:
        return {x.format(compilers.name_of(dtype)) for x in self.kernels}

    def problem(self, dtype: torch.dtype) -> cases.Problem:
        shape = len(self.regions), max(self.regions), len(self.words), max(self.words), *self.widths
        made = cases.problem(shape, dtype, lengths=False, pairs=self.listed)
        made = replace(made, region_lengths=torch.tensor(self.regions), word_lengths=torch.tensor(self.words))
        for items, lengths in ((made.regions, made.region_lengths), (made.words, made.word_lengths)):
            items[torch.arange(items.shape[1]) >= lengths[:, None]] = torch.nan
        return made

    def run(self, problem: cases.Problem, edit: Callable[[str, str], str] | None = None):
        """Scores, gradients by name, and the kernels that were launched; PTX may be edited (cuda_launches.py)."""
        products = torch.backends.cuda.matmul
        precision = products.fp32_precision
        if self.ieee:
            products.fp32_precision = "ieee"
        try:
            with cuda_launches.interpreted(edit) as launched, mock.patch.object(launch, "SCRATCH_BYTES", self.scratch):
                if self.scratch is None:
                    return problem.call(**self.options, backend="cuda"), {}, launched
                return *cases.run(problem, **self.options, backend="cuda"), launched
        finally:
            products.fp32_precision = precision


def tile_cases(tiles: int, regions: int, captions: tuple[int, int]) -> dict[str, Case]:
    """Blocks of several images and captions, some full and some not, and three pieces of either width."""
    words = tuple(1 + 5 * i % 16 for i in range(captions[0])) + tuple(32 - 5 * i % 16 for i in range(captions[1]))
    found, quick = {}, {5: "both_terms", 8: "list"}
    for kind, listed, both, options in (
        ("both_terms", "false", "true", {}),
        ("one_term", "false", "false", {"intra": None}),
        ("list", "true", "false", {}),
    ):
        kernels = tuple(f"tile_kernel<Shape<{tiles},{strips},{listed},{both}>,{{}}>" for strips in (1, 2))
        images, is_quick = (regions, 7, regions - 3), kind == quick[tiles]
        found[f"tiles_{regions}_{kind}"] = Case(
            ("product_tile_kernel<{}>", *kernels), HALF, images, words, (136, 136), options, listed == "true", quick=is_quick
        )
    return found


def option_cases() -> dict[str, Case]:
    """Every class of shapes with every option, an empty item and one with a single row beside full ones.

    The cosine of one term alone is left to golden cases.
    """
    found = {}
    for name in ("cosine", "inter_only", "intra_only", "neither"):
        cosine, both = name == "cosine", str(name == "cosine").lower()

        def add(kind, kernels, dtypes, regions, words, widths, name=name, **more):
            # The cosine rounds to the dtype; terms do not differ by it.
            dtypes = dtypes if name == "cosine" else dtypes[:1]
            found[f"{kind}_{name}"] = Case(kernels, dtypes, regions, words, widths, cases.OPTIONS[name], quick=False, **more)

        for tiles, regions in ((5, 38), (8, 50)):
            for kind, listed, of_terms in ((f"tiles_{regions}", "false", both), (f"list_{regions}", "true", "false")):
                kernels = tuple(f"tile_kernel<Shape<{tiles},{strips},{listed},{of_terms}>,{{}}>" for strips in (1, 2))
                add(kind, kernels, HALF, (regions, 0, 1, 7), (16, 0, 1, 32, 9), (72, 72), listed=listed == "true")
        # One block has all pairs of 33 words and more.
        add("large", ("large_kernel<Large<1>,{}>", "large_kernel<Large<4>,{}>"), HALF, (66, 65), (0, 40, 1, 33), (72, 72))
        if not cosine:
            for kind, listed in (("tiles", False), ("list", True)):
                kernel = f"tile_kernel<FloatShape<{str(listed).lower()}>,{{}}>"
                add(f"float32_{kind}", (kernel,), SINGLE, (36, 0, 1, 7), (13, 0, 1, 16), (40, 40), listed=listed)
        kernels = tuple(f"large_kernel<Single<{n}>,{{}}>" for n in ((1, 2) if cosine else (2,)))
        add("float32_large", kernels, SINGLE, (41, 0, 7), (20, 0, 1), (40, 72))
        add("any_width", ("score_kernel",), HALF + SINGLE, (5, 0, 1), (7, 0, 1), (36, 25))
        add("gradients", ("gradient_tile_kernel<{}>",), HALF, (5, 0, 1), (6, 0, 1), (72, 16), scratch=60000)
        add("float32_gradients", ("gradient_tile_kernel<{}>",), SINGLE, (5, 0, 1), (6, 0, 1), (16, 8), scratch=60000)
        add("ieee_gradients", ("gradient_kernel",), SINGLE, (5, 0, 1), (6, 0, 1), (40, 40), scratch=6000, ieee=True)
    return found | {"tiles_38_cosine": found["tiles_38_cosine"]._replace(quick=True)}


CASES = {
    # Of each kind of block one in which two captions share a tile of columns, and one in which they do not.
    **tile_cases(5, 38, (12, 5)),
    **tile_cases(8, 50, (7, 5)),
    # Two bands of images, two groups of captions, and two blocks, which have the work of both one after another.
    "bands": Case(("tile_kernel<Shape<5,1,false,true>,{}>",), HALF, tuple(7 * i % 9 for i in range(33)), (5, 0, 1, 2) * 3, (16, 8)),
    "bands_of_float32": Case(
        ("tile_kernel<FloatShape<false>,{}>",), SINGLE, tuple(7 * i % 9 for i in range(33)), (5, 0, 1, 2) * 3, (16, 8), quick=False
    ),
    "large": Case(tuple(f"large_kernel<Large<{n}>,{{}}>" for n in (1, 2, 4, 8)), HALF, (66,), (9, 20, 40, 70), (136, 136)),
    "tiles_of_float32": Case(("tile_kernel<FloatShape<false>,{}>",), SINGLE, (36, 7, 20), (13, 4, 16, 1, 9), (72, 72)),
    "list_of_float32": Case(
        ("tile_kernel<FloatShape<true>,{}>",), SINGLE, (36, 7, 20), (13, 4, 16), (72, 40), listed=True, quick=False
    ),
    "large_of_float32": Case(tuple(f"large_kernel<Single<{n}>,{{}}>" for n in (1, 2, 4)), SINGLE, (41,), (9, 20, 40), (136, 136)),
    "any_width": Case(("product_kernel<{}>", "score_kernel"), HALF + SINGLE, (5, 3), (7, 2, 6), (36, 25)),
    "long_caption": Case(("score_kernel", "gradient_kernel"), HALF, (3,), (130,), scratch=2**24, quick=False),
    # Six pairs in two slots.
    "gradients": Case(("gradient_tile_kernel<{}>", *PLANNING), HALF, (5, 3), (6, 4, 2), (16, 8), scratch=44000),
    "gradients_of_float32": Case(("gradient_tile_kernel<{}>",), SINGLE, (5, 3), (6, 4, 2), (16, 8), scratch=60000),
    "gradients_in_pieces": Case(("gradient_tile_kernel<{}>",), HALF, (20,), (20,), (136, 72), scratch=2**24),
    "ieee_gradients": Case(("gradient_kernel",), SINGLE, (5, 3), (6, 4, 2), (40, 40), scratch=6000, ieee=True, quick=False),
    **option_cases(),
}


def slow(*given):
    """Parameters for tools/release_check.sh; others of the same test run in CI."""
    return pytest.param(*given, marks=pytest.mark.release)


def product(edit: Callable[[str, str], str] | None = None):
    """A product of several tiles and pieces in bfloat16 as its PTX makes it, edited or not, and what it should be."""
    generator = torch.Generator().manual_seed(0)
    items, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in ((3, 50, 136), (136, 72)))
    lengths = torch.tensor([50, 7, 0])
    real = items.masked_fill((torch.arange(50) >= lengths[:, None])[..., None], 0)
    with cuda_launches.interpreted(edit) as launched:
        found = torch.ops.caan_kernels.project(items, weight, lengths, "cuda")
    assert launched == ["product_tile_kernel<bfloat16>"]
    return found.float(), real.float() @ weight.float()


def assert_accurate(case: Case, problem: cases.Problem, found: torch.Tensor, gradients: dict[str, torch.Tensor]) -> None:
    """As accurate as plain PyTorch in the same dtype, or nearly; of few scores the largest error says little."""
    expected, plain = (of(problem, **case.options) for of in (cases.oracle, partial(cases.run, backend="reference")))
    error, of_plain = (cases.score_error(x, expected[0]) for x in (found, plain[0]))
    dtype = problem.regions.dtype
    assert error <= (1e-6 if dtype == torch.float32 else max(torch.finfo(dtype).eps / 4, 2.5 * of_plain))
    for tensor, gradient in gradients.items():
        of_plain = cases.gradient_error(plain[1][tensor], expected[1][tensor])
        assert cases.gradient_error(gradient, expected[1][tensor]) <= 3 * of_plain + 1e-5, tensor


def assert_golden(name, backend, dtype=torch.bfloat16):
    """Scores and gradients of a stored case, to the bounds of test_accuracy.py."""
    path = next(path for path in cases.GOLDEN if path.stem == name)
    case, options, scores, grad_scores, gradients = cases.golden(path)
    case = case.to(dtype)
    found, found_gradients = cases.run(case, grad_scores, **options, backend=backend)
    plain, plain_gradients = cases.run(case, grad_scores, **options, backend="reference")
    bound = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 2e-6}[dtype]
    assert cases.score_error(found, scores) <= max(bound, 2 * cases.score_error(plain, scores))
    for tensor, gradient in gradients.items():
        of_plain = cases.gradient_error(plain_gradients[tensor], gradient)
        assert cases.gradient_error(found_gradients[tensor], gradient) <= max(1e-5, 3 * of_plain), tensor

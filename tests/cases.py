"""The cases that every backend is tested with, and how a result is judged.

A problem's padding holds NaN unless a test says otherwise, so each test also sees that padding is inert.
"""

import ast
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import caan_kernels as ck
from caan_kernels.context_attention.call import Call, Matrices, Options, Side, Vectors

# Triton's interpreter runs the kernels on CPU tensors: tests/test_interpreted.py.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# The CUDA kernels run on CPU tensors: tests/test_emulated.py.
EMULATED = bool(os.environ.get("CAAN_CUDA_EMULATED"))

# The backends tested, and the device of each. One that cannot run here fails its tests and says why.
KERNELS = {"cpu": "cpu"} | (dict.fromkeys(("triton", "cuda"), "cuda") if torch.cuda.is_available() else {})
if INTERPRETED or EMULATED:
    KERNELS = {"triton" if INTERPRETED else "cuda": "cpu"}

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF_DTYPES = (torch.bfloat16, torch.float16)
# What each backend computes with; the interpreter's products of bfloat16 are wrong. conftest.py leaves out the other tests.
KERNEL_DTYPES = {
    "reference": DTYPES,
    "cpu": DTYPES,
    "triton": (torch.float32, torch.float16) if INTERPRETED else (torch.float32, *HALF_DTYPES),
    "cuda": (torch.float32, *HALF_DTYPES),
}

OPTIONS = {
    "default": {},
    "cosine": {"similarity": "cosine"},
    "inter_only": {"intra": None},
    "inter_only_cosine": {"intra": None, "similarity": "cosine"},
    "intra_only": {"inter": False},
    "intra_only_cosine": {"inter": False, "similarity": "cosine"},
    "neither": {"inter": False, "intra": None},
}
# As the operators take the first of them.
PAPER = Options(cosine=False, inter=True, intra=True)
# What the reference alone computes.
FEATURE_OPTIONS = {
    "features": {"intra": "features"},
    "features_only": {"intra": "features", "inter": False},
    "features_cosine": {"intra": "features", "similarity": "cosine"},
}

# images, regions, captions, words, width, hidden width
_SHAPES = {
    "ones": (2, 1, 3, 1, 2, 1),
    "odd": (4, 5, 5, 7, 6, 9),
    "narrow_hidden": (3, 9, 4, 3, 24, 3),
    "wide_hidden": (3, 6, 4, 10, 7, 83),
    "captions_longer": (3, 4, 5, 37, 33, 17),
    "paper_like": (4, 36, 7, 21, 96, 130),
    "tiles": (3, 36, 6, 34, 72, 40),
}

# The interpreter takes a thousand times as long, and a GPU's kernels are compiled for every pair of widths.
_INTERPRETED_SHAPES = {
    "odd": (3, 5, 4, 7, 6, 9),
    "captions_longer": (2, 4, 2, 37, 6, 9),
    "paper_like": (2, 36, 2, 21, 33, 40),
}
# Hopper's tiles take widths of their own (triton/configurations.py); the last shape is for what they leave.
_GPU_SHAPES = {
    "odd": (3, 5, 4, 7, 6, 34),
    "captions_longer": (2, 4, 2, 37, 6, 34),
    "paper_like": (2, 36, 2, 21, 34, 40),
    "narrow_hidden": (2, 4, 2, 37, 6, 9),
}
SHAPES = _INTERPRETED_SHAPES if INTERPRETED else _GPU_SHAPES if "triton" in KERNELS else _SHAPES
EXAMPLES = 120 if "triton" not in KERNELS else 8

# Stored float64 answers of an independent implementation; their inputs are numbers that bfloat16 holds.
ALL_GOLDEN = sorted((Path(__file__).parent / "data").glob("*.npz"))
GOLDEN = [path for path in ALL_GOLDEN if not path.stem.startswith("features")]

# How far alignments of a random problem stay from 0: the largest of each region and word so far that no dtype sees it on the
# other side, where scores jump; all of them so far that float32 does, where derivatives do.
LARGEST_ALIGNMENT, ANY_ALIGNMENT = 3e-2, 4e-6
_MOST_DRAWS = 500

BILINEAR = ("region_bilinear", "word_bilinear")
TENSORS = ("regions", "words", *(name for name in ck.ContextAttentionWeights._fields if name not in BILINEAR))


@dataclass(frozen=True)
class Problem:
    """The tensors of a call."""

    regions: Tensor
    words: Tensor
    weights: ck.ContextAttentionWeights
    region_lengths: Tensor | None
    word_lengths: Tensor | None
    pairs: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What can have a gradient, by name."""
        named = zip(TENSORS + BILINEAR, (self.regions, self.words, *self.weights), strict=True)
        return {name: tensor for name, tensor in named if tensor is not None}

    def with_tensors(self, tensors) -> "Problem":
        """The same call on other features and weights, given in the order of `TENSORS`, with those of `BILINEAR` or without."""
        regions, words, *weights = tensors
        return replace(self, regions=regions, words=words, weights=ck.ContextAttentionWeights(*weights))

    def to(self, *where) -> "Problem":
        """Features and weights in another dtype or on another device."""
        return self.with_tensors(x.to(*where) for x in self.tensors().values())

    def on(self, backend: str | None) -> "Problem":
        """Features and weights where a backend wants them."""
        return self.to(KERNELS[backend]) if KERNELS.get(backend, "cpu") != "cpu" else self

    def call(self, function=ck.context_attention, **options):
        """`function` of this problem, on the device of the backend that is asked for."""
        case = self.on(options.get("backend"))
        lengths = {"region_lengths": case.region_lengths, "word_lengths": case.word_lengths, "pairs": case.pairs}
        return function(case.regions, case.words, case.weights, **lengths, **options)

    def packed(self, backend: str, options: Options = PAPER, gradient: bool = False) -> Call:
        """The call of projected sides as the operators take it, whose tensors want a gradient or not."""
        case = self.on(backend)

        def leaf(x: Tensor) -> Tensor:
            return x.detach().clone().requires_grad_(gradient)

        regions, words = (Side(leaf(x.features), leaf(x.products), x.lengths) for x in case.project())
        vectors = Vectors(leaf(case.weights.region_score), leaf(case.weights.word_score))
        pairs = None if case.pairs is None else case.pairs.to(regions.features.device)
        return Call(regions, words, vectors, Matrices(), pairs, options, backend)

    def project(self, backend: str = "auto") -> tuple[ck.ProjectedRegions, ck.ProjectedWords]:
        """Both sides, projected."""
        return (
            ck.project_regions(self.regions, self.weights, self.region_lengths, backend=backend),
            ck.project_words(self.words, self.weights, self.word_lengths, backend=backend),
        )


def problem(
    shape,
    dtype=torch.float64,
    *,
    seed=0,
    scale=1.0,
    padding=float("nan"),
    lengths=True,
    pairs=False,
    bilinear=False,
    near_zero=False,
    device="cpu",
):
    """A random problem with ragged items; with two items or more on a side, one is full and with three, one is empty.

    Captions are drawn again while an alignment of theirs lies where a rounding error makes a score jump (docs/operator.md).

    Args:
        shape: a name in `SHAPES`, or six sizes.
        dtype: drawn in float64 and rounded to this.
        seed: of the draw.
        scale: of the features; at 1 the alignment fills the range of tanh, at 10 it saturates.
        padding: what stands beyond the lengths.
        lengths: False for None.
        pairs: whether to list pairs, some twice and in no order.
        bilinear: whether to draw the matrices of intra="features" too.
        near_zero: whether alignments may lie anywhere: for results that are not compared with another precision's.
        device: of everything but lengths and pairs.
    """
    images, m, captions, n, width, hidden = SHAPES[shape] if isinstance(shape, str) else shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size, scale):
        return torch.randn(size, dtype=torch.float64, generator=generator) * scale

    regions = normal(images, m, width, scale=scale * width**-0.25)
    words = normal(captions, n, width, scale=scale * width**-0.25)
    region_lengths = word_lengths = None
    exists = [torch.ones(x.shape[:2], dtype=torch.bool) for x in (regions, words)]
    if lengths:
        region_lengths, word_lengths = some_lengths(images, m, generator), some_lengths(captions, n, generator)
        exists = [torch.arange(x.shape[1]) < count[:, None] for x, count in ((regions, region_lengths), (words, word_lengths))]
    matrices = [normal(width, x, scale=width**-0.5) for x in (width, hidden, hidden, hidden, hidden)]
    weights = [*matrices, *(normal(hidden, scale=2 * hidden**-0.5) for _ in range(2))]
    weights += [normal(width, width, scale=width**-0.5) for _ in range(2)] if bilinear else [None] * 2
    if not near_zero:
        for draw in range(_MOST_DRAWS):
            doubtful = _doubtful_captions(*(x.to(dtype).double() for x in (regions, weights[0], words)), *exists)
            if not doubtful.any():
                break
            # Under a small affinity no words are clear.
            if draw % 50 == 49:
                weights[0] = normal(width, width, scale=width**-0.5)
            words[doubtful] = normal(int(doubtful.sum()), n, width, scale=scale * width**-0.25)
        else:
            raise RuntimeError(f"no words of shape {shape} whose alignments all stay away from 0")
    for items, real in zip((regions, words), exists, strict=True):
        items[~real] = padding
    chosen = None
    if pairs:
        count = images * captions
        chosen = torch.randint(count, (count + 3,), generator=generator)
        chosen = torch.stack([chosen // captions, chosen % captions], dim=1)
    drawn = Problem(regions, words, ck.ContextAttentionWeights(*weights), region_lengths, word_lengths, chosen)
    return drawn.to(device, dtype)


def some_lengths(count, longest, generator):
    """Lengths of so many items: the second is full, and the third is empty."""
    drawn = torch.randint(min(1, longest), longest + 1, (count,), generator=generator)
    drawn[1:2], drawn[2:3] = longest, 0
    return drawn


def _doubtful_captions(regions, affinity, words, region_exists, word_exists):
    """(T,) bool: captions with an alignment that lies too near to 0."""
    if not (region_exists.any() and word_exists.any()):
        return torch.zeros(len(words), dtype=torch.bool)
    A = torch.tanh(torch.einsum("imd,tnd->itmn", regions @ affinity, words))
    exists = region_exists[:, None, :, None] & word_exists[None, :, None, :]
    near = ((A.abs() < ANY_ALIGNMENT) & exists).flatten(2).any(2)
    for side in (2, 3):
        largest = torch.where(exists, A, -torch.inf).amax(side)
        near |= (largest.abs() < LARGEST_ALIGNMENT).any(2)
    return near.any(0)


def golden(path):
    """(problem, options, scores, gradient of the scores, gradients by name) of a stored case, all float64."""
    with np.load(path) as stored:
        data = {key: torch.from_numpy(stored[key]) for key in stored if key != "options"}
        options = ast.literal_eval(str(stored["options"]))
    case = Problem(None, None, None, data["region_lengths"], data["word_lengths"]).with_tensors(
        data[name] for name in TENSORS + BILINEAR if name in data
    )
    return case, options, data["scores"], data["grad_scores"], {name: data[f"grad_{name}"] for name in case.tensors()}


def golden_maps(path):
    """The maps of a stored case's first pair, image 0 with caption 0, without padding; the last entry is the score."""
    with np.load(path) as stored:
        return {key.removeprefix("first_pair_"): torch.from_numpy(stored[key]) for key in stored if key.startswith("first_pair_")}


def run(case: Problem, grad_scores=None, **options):
    """(scores, gradients by name), detached; the scores' gradient is drawn from a fixed seed unless given."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in case.tensors().items()}
    scores = case.with_tensors(leaves.values()).call(**options)
    if grad_scores is None:
        generator = torch.Generator().manual_seed(1)
        grad_scores = torch.randn(scores.shape, dtype=torch.float64, generator=generator)
    read = list(leaves.values())
    gradients = torch.autograd.grad(scores, read, grad_scores.to(scores), allow_unused=True, materialize_grads=True)
    return scores.detach(), dict(zip(leaves, gradients, strict=True))


def oracle(case: Problem, grad_scores=None, **options):
    """What `run` should give: the reference in float64 on the same numbers."""
    return run(case.to("cpu", torch.float64), grad_scores, **options, backend="reference")


def score_error(scores: Tensor, expected: Tensor) -> float:
    """Largest absolute error; NaN counts as infinite."""
    return float((scores.cpu().double() - expected).abs().nan_to_num(nan=torch.inf).max()) if expected.numel() else 0.0


def spread_errors(scores: Tensor, expected: Tensor) -> tuple[float, float]:
    """Root mean square and 99th percentile of the absolute errors; NaN counts as infinite."""
    errors = (scores.cpu().double() - expected).abs().nan_to_num(nan=torch.inf).flatten()
    return (float(errors.square().mean().sqrt()), float(errors.quantile(0.99))) if errors.numel() else (0.0, 0.0)


def gradient_error(gradient: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """L2 error relative to the norm expected, or to `least` if that is more; NaN counts as infinite.

    A cosine's gradient may cancel to nothing, as it does at width 1, and leave rounding errors alone to be compared.
    """
    difference = (gradient.cpu().double() - expected).norm().nan_to_num(nan=torch.inf)
    return 0.0 if difference == 0 else float(difference / expected.norm().clamp_min(least))


def assert_inert(case: Problem, gradients: dict[str, Tensor]) -> None:
    """Padding has a gradient of exactly 0."""
    for name, lengths in (("regions", case.region_lengths), ("words", case.word_lengths)):
        if lengths is not None:
            padding = torch.arange(gradients[name].shape[1]) >= lengths[:, None]
            assert not gradients[name].cpu()[padding].any(), f"the padding of {name} has a gradient"


def assert_equal(found, expected, backend: str) -> None:
    """The same bits, tensor by tensor; plain PyTorch's products have others in another batch."""
    for x, y in zip(*map(torch.utils._pytree.tree_leaves, (found, expected)), strict=True):
        if backend == "reference":
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(x, y)


def assert_one_device(operator, arguments: tuple) -> None:
    """An operator refuses a call of which one tensor has no memory."""
    for place, x in enumerate(arguments):
        if isinstance(x, Tensor):
            given = *arguments[:place], x.to("meta"), *arguments[place + 1 :]
            with pytest.raises(RuntimeError, match="expected device"):
                operator(*given)


def assert_keeps_denormals(result, threads) -> None:
    """`result`, as `run` gives it, does not depend on the floating-point state of the calling thread, nor on threads, and leaves
    that state as it is."""
    threads(2)
    expected = result()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        found = []
        for count in (1, 2):
            threads(count)
            found.append(result())
        # The caller's own arithmetic is as it was set.
        assert torch.full((), 1e-38).mul(0.01) == 0
    finally:
        torch.set_flush_denormal(False)
    assert expected[0].count_nonzero() and expected[0].abs().max() < 2**-126
    for one in found:
        assert_same(expected, one)


def assert_same(first, second) -> None:
    """Two results of `run` agree to the last bit."""
    assert torch.equal(first[0], second[0]), f"scores differ by {(first[0] - second[0]).abs().max()}"
    for name, gradient in first[1].items():
        assert torch.equal(gradient, second[1][name]), f"the gradients of {name} differ"

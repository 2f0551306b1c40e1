"""The cases that every backend is tested with, and how a result is judged.

A problem's padding holds NaN unless a test says otherwise, so each test also sees that padding is inert.
"""

import ast
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import caan_kernels as ck

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
    "dot": {"similarity": "dot"},
    "softmax": {"normalization": "softmax"},
    "softmax_dot_mild": {"normalization": "softmax", "similarity": "dot", "temperature": 2.5},
    "inter_only": {"intra": False},
    "intra_only": {"inter": False},
    "softmax_inter_only": {"normalization": "softmax", "intra": False},
    "neither": {"inter": False, "intra": False},
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
_FEWER = {
    "odd": (3, 5, 4, 7, 6, 9),
    "captions_longer": (2, 4, 2, 37, 6, 9),
    "paper_like": (2, 36, 2, 21, 33, 40),
}
SHAPES = _SHAPES if "triton" not in KERNELS else _FEWER
EXAMPLES = 120 if "triton" not in KERNELS else 8

GOLDEN = sorted((Path(__file__).parent / "data").glob("*.npz"))

TENSORS = ("regions", "words", *ck.ContextAttentionWeights._fields)


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
        return dict(zip(TENSORS, (self.regions, self.words, *self.weights), strict=True))

    def with_tensors(self, tensors) -> "Problem":
        """The same call on other features and weights, given in the order of `TENSORS`."""
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
        return function(case.regions, case.words, case.weights, case.region_lengths, case.word_lengths, case.pairs, **options)


def problem(shape, dtype=torch.float64, *, seed=0, scale=1.0, padding=float("nan"), lengths=True, pairs=False, device="cpu"):
    """A random problem with ragged items; with two items or more on a side, one is full and with three, one is empty.

    Args:
        shape: a name in `SHAPES`, or six sizes.
        dtype: drawn in float64 and rounded to this.
        seed: of the draw.
        scale: of the features; at 1 the alignment fills the range of tanh, at 10 it saturates.
        padding: what stands beyond the lengths.
        lengths: False for None.
        pairs: whether to list pairs, some twice and in no order.
        device: of everything but lengths and pairs.
    """
    images, m, captions, n, width, hidden = SHAPES[shape] if isinstance(shape, str) else shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size, scale):
        return torch.randn(size, dtype=torch.float64, generator=generator) * scale

    def some_lengths(count, longest):
        drawn = torch.randint(min(1, longest), longest + 1, (count,), generator=generator)
        drawn[1:2], drawn[2:3] = longest, 0
        return drawn

    regions = normal(images, m, width, scale=scale * width**-0.25)
    words = normal(captions, n, width, scale=scale * width**-0.25)
    region_lengths = word_lengths = None
    if lengths:
        region_lengths, word_lengths = some_lengths(images, m), some_lengths(captions, n)
        for items, count in ((regions, region_lengths), (words, word_lengths)):
            items[torch.arange(items.shape[1]) >= count[:, None]] = padding
    matrices = [normal(width, x, scale=width**-0.5) for x in (width, hidden, hidden, hidden, hidden)]
    weights = [*matrices, *(normal(hidden, scale=2 * hidden**-0.5) for _ in range(2))]
    chosen = None
    if pairs:
        count = images * captions
        chosen = torch.randint(count, (count + 3,), generator=generator)
        chosen = torch.stack([chosen // captions, chosen % captions], dim=1)
    drawn = Problem(regions, words, ck.ContextAttentionWeights(*weights), region_lengths, word_lengths, chosen)
    return drawn.to(device, dtype)


def golden(path):
    """(problem, options, scores, gradient of the scores, gradients by name) of a stored case, all float64."""
    with np.load(path) as stored:
        data = {key: torch.from_numpy(stored[key]) for key in stored if key != "options"}
        options = ast.literal_eval(str(stored["options"]))
    case = Problem(None, None, None, data["region_lengths"], data["word_lengths"]).with_tensors(data[name] for name in TENSORS)
    return case, options, data["scores"], data["grad_scores"], {name: data[f"grad_{name}"] for name in TENSORS}


def run(case: Problem, grad_scores=None, **options):
    """(scores, gradients by name), detached; the scores' gradient is drawn from a fixed seed unless given."""
    leaves = [x.detach().clone().requires_grad_() for x in case.tensors().values()]
    scores = case.with_tensors(leaves).call(**options)
    if grad_scores is None:
        generator = torch.Generator().manual_seed(1)
        grad_scores = torch.randn(scores.shape, dtype=torch.float64, generator=generator)
    gradients = torch.autograd.grad(scores, leaves, grad_scores.to(scores), allow_unused=True, materialize_grads=True)
    return scores.detach(), dict(zip(TENSORS, gradients, strict=True))


def oracle(case: Problem, grad_scores=None, **options):
    """What `run` should give: the reference in float64 on the same numbers."""
    return run(case.to("cpu", torch.float64), grad_scores, **options, backend="reference")


def score_error(scores: Tensor, expected: Tensor) -> float:
    """Largest absolute error; NaN counts as infinite."""
    return float((scores.cpu().double() - expected).abs().nan_to_num(nan=torch.inf).max()) if expected.numel() else 0.0


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


def assert_same(first, second) -> None:
    """Two results of `run` agree to the last bit."""
    assert torch.equal(first[0], second[0]), f"scores differ by {(first[0] - second[0]).abs().max()}"
    for name, gradient in first[1].items():
        assert torch.equal(gradient, second[1][name]), f"the gradients of {name} differ"

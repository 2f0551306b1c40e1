"""Problems for every test of the operator, and how a result is judged. Padding holds NaN unless a test says otherwise."""

from dataclasses import dataclass, replace

import cases
import torch
from torch import Tensor

import caan_kernels as ck
from caan_kernels.core.records import Items
from caan_kernels.max_similarity.call import Call, Options

KERNELS = tuple(cases.KERNELS)
BACKENDS = ("reference", *KERNELS)
# Kernels take a thousand times as long.
SLOW = cases.INTERPRETED or cases.EMULATED

OPTIONS = {
    "words": {},
    "words_mean": {"reduce": "mean"},
    "regions": {"over": "regions"},
    "regions_mean": {"over": "regions", "reduce": "mean"},
}

# images, regions, captions, words, width
SHAPES = {
    "ones": (2, 1, 3, 1, 1),
    "odd": (4, 5, 5, 7, 6),
    "wide": (3, 9, 4, 3, 300),
    "captions_longer": (3, 4, 5, 37, 33),
    "pages": (3, 100, 5, 21, 128),
    "many": (23, 13, 90, 17, 40),
}
if SLOW:
    # The classes of shapes that the field has, narrow.
    SHAPES |= {
        "wide": (3, 9, 4, 3, 72),
        "pages": (3, 100, 5, 21, 16),
        "many": (5, 13, 9, 17, 40),
        "coco": (3, 36, 3, 13, 16),
        "grid": (2, 49, 2, 20, 136),
        "patches": (1, 196, 2, 32, 16),
        "many_patches": (1, 576, 1, 64, 8),
        "large_pages": (2, 1030, 1, 32, 16),
    }
if cases.INTERPRETED:
    SHAPES |= {
        "captions_longer": (2, 4, 2, 37, 33),
        "pages": (3, 70, 4, 9, 16),
        "many": (3, 7, 5, 9, 24),
        "coco": (2, 36, 2, 13, 16),
        "grid": (1, 49, 1, 20, 72),
        "large_pages": (1, 1030, 1, 32, 16),
    }

# The largest product of a row leads the next by so much more than any precision errs by: else another row may be taken.
LEAD = 1e-4
_MOST_DRAWS = 200


def score(regions: Tensor, words: Tensor, *indices: Tensor | None, backend: str = "auto", **options) -> Tensor:
    """`ck.max_similarity` on the device of the backend that is asked for; scores and gradients come back to the CPU."""
    if cases.KERNELS.get(backend) == "cuda":
        regions, words = regions.cuda(), words.cuda()
    return ck.max_similarity(regions, words, *indices, backend=backend, **options).cpu()


@dataclass(frozen=True)
class Problem:
    """The tensors of a call."""

    regions: Tensor
    words: Tensor
    region_lengths: Tensor | None = None
    word_lengths: Tensor | None = None
    pairs: Tensor | None = None

    def call(self, **options) -> Tensor:
        return score(self.regions, self.words, self.region_lengths, self.word_lengths, self.pairs, **options)

    def to(self, dtype: torch.dtype) -> "Problem":
        return replace(self, regions=self.regions.to(dtype), words=self.words.to(dtype))

    def packed(self, backend: str, gradient: bool = False, over: str = "words", reduce: str = "sum") -> Call:
        """The call as the operators take it."""
        regions, words = (x.detach().clone().requires_grad_(gradient) for x in (self.regions, self.words))
        options = Options(over == "regions", reduce == "mean")
        return Call(Items(regions, self.region_lengths), Items(words, self.word_lengths), self.pairs, options, backend)


def problem(shape, dtype=torch.float64, *, seed=0, padding=float("nan"), lengths=True, pairs=False) -> Problem:
    """A random problem with ragged items; with two items or more on a side, one is full and with three, one is empty.

    Captions are drawn again while a largest product does not lead by `LEAD`. Args are those of `cases.problem`.
    """
    images, m, captions, n, width = SHAPES[shape] if isinstance(shape, str) else shape
    generator = torch.Generator().manual_seed(seed)

    def normal(count, rows):
        return torch.randn(count, rows, width, dtype=torch.float64, generator=generator) * width**-0.25

    regions, words = normal(images, m).to(dtype).double(), normal(captions, n).to(dtype).double()
    sides = (images, m), (captions, n)
    given = [cases.some_lengths(*side, generator) if lengths else None for side in sides]
    for _ in range(_MOST_DRAWS):
        doubtful = _doubtful_captions(regions, words, *given)
        if not doubtful.any():
            break
        words[doubtful] = normal(int(doubtful.sum()), n).to(dtype).double()
    else:
        raise RuntimeError(f"no words of shape {shape} whose largest products all lead")
    for items, count in zip((regions, words), given, strict=True):
        if count is not None:
            items[torch.arange(items.shape[1]) >= count[:, None]] = padding
    chosen = None
    if pairs:
        chosen = torch.randint(images * captions, (images * captions // 2 + 3,), generator=generator)
        chosen = torch.stack([chosen // captions, chosen % captions], dim=1)
    return Problem(regions.to(dtype), words.to(dtype), *given, chosen)


def _doubtful_captions(regions, words, region_lengths, word_lengths) -> Tensor:
    """(T,) bool: captions with a row, of theirs or of an image, whose two largest products are too near to each other."""
    products = torch.einsum("imd,tnd->itmn", regions, words)
    exists = torch.ones(products.shape, dtype=torch.bool)
    if region_lengths is not None:
        exists &= (torch.arange(regions.shape[1]) < region_lengths[:, None])[:, None, :, None]
        exists &= (torch.arange(words.shape[1]) < word_lengths[:, None])[None, :, None, :]
    products = torch.where(exists, products, -torch.inf)
    near = torch.zeros(len(words), dtype=torch.bool)
    for side in (2, 3):
        if products.shape[side] > 1 and products.numel():
            first, second = products.topk(2, dim=side).values.unbind(side)
            near |= ((first - second < LEAD) & second.isfinite()).flatten(2).any(2).any(0)
    return near


def run(case: Problem, grad_scores=None, **options):
    """(scores, gradients by name), detached; the scores' gradient is drawn from a fixed seed unless given."""
    leaves = {"regions": case.regions, "words": case.words}
    leaves = {name: x.detach().clone().requires_grad_() for name, x in leaves.items()}
    scores = replace(case, **leaves).call(**options)
    if grad_scores is None:
        generator = torch.Generator().manual_seed(1)
        grad_scores = torch.randn(scores.shape, dtype=torch.float64, generator=generator)
    gradients = torch.autograd.grad(scores, list(leaves.values()), grad_scores.to(scores))
    return scores.detach(), dict(zip(leaves, gradients, strict=True))


def oracle(case: Problem, grad_scores=None, **options):
    """What `run` should give: the reference in float64 on the same numbers."""
    return run(case.to(torch.float64), grad_scores, **options, backend="reference")


def assert_accurate(case: Problem, backend: str, **options) -> None:
    """At most twice the error of plain PyTorch in the same dtype, or an absolute bound; gradients at most three times."""
    expected, expected_gradients = oracle(case, **options)
    plain, plain_gradients = run(case, **options, backend="reference")
    found, gradients = run(case, **options, backend=backend)
    assert found.dtype == (torch.float64 if case.regions.dtype == torch.float64 else torch.float32)
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    least = 4 * torch.finfo(found.dtype).eps
    # Of few pairs the largest error says nothing.
    error, of_plain = (cases.spread_errors(x, expected)[0] for x in (found, plain))
    assert error <= max(least * scale, 2 * of_plain), "scores"
    for name, x in gradients.items():
        assert x.dtype == case.regions.dtype
        of_plain = cases.gradient_error(plain_gradients[name], expected_gradients[name])
        bound = max(2 * torch.finfo(x.dtype).eps, 3 * of_plain)
        assert cases.gradient_error(x, expected_gradients[name]) <= bound, name
    cases.assert_inert(case, gradients)

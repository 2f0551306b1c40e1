"""The operator as it is called: checks and choice of backend."""

from torch import Tensor

from ..core.autocast import autocast_dtype, cast, without_autocast
from ..core.backends import select
from ..core.checks import Named, check_features, check_pairs, check_same_width, lengths_of
from ..core.derivatives import differentiable, refuse_tangents, wants_gradient, without_derivative
from ..core.indices import indices_for
from ..core.records import Items, flatten
from . import reference
from .backends import NAME
from .call import Call, Options


def max_similarity(
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None = None,
    word_lengths: Tensor | None = None,
    pairs: Tensor | None = None,
    *,
    region_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    over: str = "words",
    reduce: str = "sum",
    backend: str = "auto",
) -> Tensor:
    """MaxSim: how well the words of a caption are found among the regions of an image (docs/max-similarity.md).

    score = Σ over words j of max over regions r of ⟨region r, word j⟩: late interaction, as ColBERT and ColPali score a query
    (words) against a document (regions). Features are taken as they are: normalise them first for cosines.

    Features share one dtype and device. Lengths and pairs are on the same device, or on the CPU. Under torch.autocast,
    float16, bfloat16 and float32 features are cast to autocast's dtype, as for torch.matmul. float64 is left alone.

    Args:
        regions: (I, M, D) region features, float16, bfloat16, float32 or float64.
        words: (T, N, D) word features.
        region_lengths: (I,) integers from 0 to M, the real regions of each image; None means all M. What lies beyond
            may hold anything, NaN included.
        word_lengths: (T,) integers from 0 to N, likewise for captions.
        pairs: (P, 2) int64, rows (image, caption); None means every image with every caption.
        region_mask: (I, M) Boolean in place of `region_lengths`: True for the real regions, which come first. A False before
            a True is an error. On a GPU the host does not look, because that would synchronise: that image's scores are NaN.
        word_mask: (T, N), likewise in place of `word_lengths`.
        over: "words": every word looks for its best region; "regions": every region for its best word.
        reduce: "sum" of the largest products, or their "mean" over the real words, or regions with over="regions".
        backend: "auto" or a name of `available_backends()` that has this operator.

    Returns:
        (I, T) scores, or (P,) with pairs; float32, or float64 for float64. A pair with an empty side scores 0. A NaN
        product makes its own score NaN and no other. Scores have first derivatives with respect to features. Where several
        regions (words) have the largest product, the gradient goes to the first of them. A second derivative is an error,
        except on the reference.

    Raises:
        TypeError: a type or dtype that does not fit.
        ValueError: a rank, width, device, length, pair, option or backend's name that does not fit.
        RuntimeError: the backend asked for cannot run this call; under torch.compile, a length or pair out of range.
    """
    options = _checked_options(over, reduce)
    call = _checked((regions, region_lengths, region_mask), (words, word_lengths, word_mask), pairs, options)
    features = call.regions.features, call.words.features
    name = select(NAME, backend, features[0].device, features[0].dtype)
    if name != "reference":
        refuse_tangents(features, NAME)
    with without_autocast(features[0].device):
        call = _placed(call, name)
        if name == "reference":
            return reference.max_similarity(call)
        operator = differentiable if wants_gradient(features) else without_derivative
        return operator(NAME)(*flatten(call))


def _checked_options(over: str, reduce: str) -> Options:
    for name, given, choices in (("over", over, ("words", "regions")), ("reduce", reduce, ("sum", "mean"))):
        expected = f"{name}: expected {choices[0]!r} or {choices[1]!r}, got {given!r}"
        if not isinstance(given, str):
            raise TypeError(expected)
        if given not in choices:
            raise ValueError(expected)
    return Options(over_regions=over == "regions", mean=reduce == "mean")


def _checked(regions: tuple, words: tuple, pairs: Tensor | None, options: Options) -> Call:
    """The call, of a backend that is not chosen yet; of each side its features, lengths and mask."""
    dtype = autocast_dtype([x for x in (regions[0], words[0]) if isinstance(x, Tensor)])
    sides = []
    for name, (features, lengths, mask) in (("regions", regions), ("words", words)):
        named = Named(name, cast(features, dtype))
        check_features(*named)
        sides.append(Items(named.tensor, lengths_of(name, lengths, mask, named)))
    V, U = Named("regions", sides[0].features), Named("words", sides[1].features)
    check_same_width(U, V)
    if pairs is not None:
        check_pairs(pairs, V, U)
    return Call(*sides, pairs, options, "")


def _placed(call: Call, backend: str) -> Call:
    """The call with its tensors as the operators of a backend take them."""
    regions, words = (Items(x.features.contiguous(), indices_for(x.lengths, x.features, backend)) for x in call[:2])
    return Call(regions, words, indices_for(call.pairs, regions.features, backend), call.options, backend)

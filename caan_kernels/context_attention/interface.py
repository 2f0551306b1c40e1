"""The operator as it is called: checks, projections, choice of backend."""

import torch
from torch import Tensor

from ..core.autocast import autocast_dtype, cast, without_autocast
from ..core.backends import select
from ..core.checks import Named, check_features, check_lengths, check_pairs, check_same_width, check_tensor, lengths_of
from ..core.derivatives import differentiable, refuse_tangents, wants_gradient, without_derivative
from ..core.indices import indices_for
from ..core.records import flatten
from . import arguments, reference
from .backends import NAME
from .call import Call, Matrices, Projection, Side, Vectors, beside
from .types import AttentionMaps, ContextAttentionWeights, ProjectedRegions, ProjectedWords

# The weights that each part of a call reads, those of a side in the order of its products' columns.
_REGION_FIELDS = ("region_intra", "word_inter")
_WORD_FIELDS = ("affinity", "region_inter", "word_intra")
_SCORE_FIELDS = ("region_score", "word_score")
_BILINEAR_FIELDS = ("region_bilinear", "word_bilinear")


def context_attention(
    regions: Tensor | ProjectedRegions,
    words: Tensor | ProjectedWords,
    weights: ContextAttentionWeights,
    region_lengths: Tensor | None = None,
    word_lengths: Tensor | None = None,
    pairs: Tensor | None = None,
    *,
    region_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    similarity: str = "dot",
    inter: bool = True,
    intra: str | None = "semantics",
    backend: str = "auto",
) -> Tensor:
    """Similarity of images and captions under context-aware attention (docs/operator.md).

    Features, products and weights share one dtype and device. Lengths and pairs are on the same device, or on the CPU.
    Under torch.autocast, float16, bfloat16 and float32 features and weights are cast to autocast's dtype, as for
    torch.matmul. If a side was projected before, they are cast to the dtype of that side. float64 is left alone.

    Args:
        regions: (I, M, D) region features, float16, bfloat16, float32 or float64; or the result of `project_regions`.
        words: (T, N, D) word features; or the result of `project_words`.
        weights: the learned tensors. The matrices of a side that is projected already are not read.
        region_lengths: (I,) integers from 0 to M, the real regions of each image; None means all M. What lies beyond
            may hold anything, NaN included. Stays None for projected regions, which have their own.
        word_lengths: (T,) integers from 0 to N, likewise for captions.
        pairs: (P, 2) int64, rows (image, caption); None means every image with every caption.
        region_mask: (I, M) Boolean in place of `region_lengths`: True for the real regions, which come first. A False before
            a True is an error. On a GPU the host does not look, because that would synchronise: that image's scores are NaN.
        word_mask: (T, N), likewise in place of `word_lengths`.
        similarity: of the two pooled vectors: "dot", the paper's inner product (18), or "cosine".
        inter: keep the context from the other side, C U Q2 and Rᵀ V Q4 in (8, 10).
        intra: the affinity behind the context from the own side. "semantics": (16, 17). "features": (14, 15), on the
            reference only and not for projected sides. None drops this context.
        backend: "auto" or a name of `available_backends()`.

    Returns:
        (I, T) scores, or (P,) with pairs; float32, or float64 for float64. A pair with an empty side scores 0.
        Scores have first derivatives with respect to features, products and the weights that the options read. A
        second derivative is an error, except on the reference.

    Raises:
        TypeError: a type or dtype that does not fit.
        ValueError: a rank, width, device, length, pair, option or backend's name that does not fit.
        RuntimeError: the backend asked for cannot run this call; under torch.compile, a length or pair out of range.
    """
    options = arguments.checked_options(similarity, inter, intra)
    call, bilinear = _checked((regions, region_lengths, region_mask), (words, word_lengths, word_mask), weights, pairs, options)
    read = _read(call, bilinear)
    name = _select(backend, call, read, bilinear=bilinear is not None)
    with without_autocast(call.regions.features.device):
        call = _placed(call, name)
        if name == "reference":
            return reference.pair_scores(_projected(call), bilinear)
        if wants_gradient(read):
            return differentiable("pair_scores")(*flatten(_projected(call)))
        return without_derivative("pair_scores")(*flatten(call))


def attention_maps(
    regions: Tensor | ProjectedRegions,
    words: Tensor | ProjectedWords,
    weights: ContextAttentionWeights,
    pairs: Tensor,
    region_lengths: Tensor | None = None,
    word_lengths: Tensor | None = None,
    *,
    region_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    similarity: str = "dot",
    inter: bool = True,
    intra: str | None = "semantics",
    backend: str = "auto",
) -> AttentionMaps:
    """Scores of a few pairs and the attention they came from.

    Only the reference has derivatives of maps. Where a gradient is wanted, "auto" chooses it and other backends refuse.

    Args:
        regions: as for `context_attention`.
        words: as for `context_attention`.
        weights: as for `context_attention`.
        pairs: (P, 2) int64, rows (image, caption).
        region_lengths: as for `context_attention`.
        word_lengths: as for `context_attention`.
        region_mask: as for `context_attention`.
        word_mask: as for `context_attention`.
        similarity: as for `context_attention`.
        inter: as for `context_attention`.
        intra: as for `context_attention`.
        backend: as for `context_attention`.

    Returns:
        The maps, float32, or float64 for float64: about P · (M² + N² + 3MN) numbers. With intra=None, the affinities
        are those of "semantics".

    Raises:
        TypeError, ValueError, RuntimeError: as `context_attention`.
    """
    if pairs is None:
        raise TypeError("pairs: expected a tensor of shape (P, 2), got None")
    options = arguments.checked_options(similarity, inter, intra)
    call, bilinear = _checked((regions, region_lengths, region_mask), (words, word_lengths, word_mask), weights, pairs, options)
    name = _select(backend, call, _read(call, bilinear), maps=True, bilinear=bilinear is not None)
    with without_autocast(call.regions.features.device):
        call = _projected(_placed(_gathered(call), name))
        if name == "reference":
            return AttentionMaps(*reference.pair_maps(call, bilinear))
        scores, f, g, A, C, Rt = without_derivative("pair_maps")(*flatten(call))
        return AttentionMaps(scores, f, g, A, C, Rt, reference.second_order(C), reference.second_order(Rt))


def project_regions(
    regions: Tensor,
    weights: ContextAttentionWeights,
    region_lengths: Tensor | None = None,
    *,
    region_mask: Tensor | None = None,
    backend: str = "auto",
) -> ProjectedRegions:
    """Multiply the regions of images by their weights once, and not again for each call that scores them.

    Args:
        regions: (I, M, D) region features.
        weights: the learned tensors; region_intra and word_inter are used here.
        region_lengths: (I,) integers from 0 to M, the real regions of each image; None means all M.
        region_mask: (I, M) Boolean in its place, as for `context_attention`.
        backend: "auto" or a name of `available_backends()`. Name the backend that scores if scores have to be bit for bit
            those of unprojected features.

    Returns:
        What `context_attention` and `attention_maps` take in place of the regions: the features and 2·H numbers a
        region.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with what was expected.
        RuntimeError: the backend asked for cannot run this call.
    """
    return ProjectedRegions(*_project_alone("regions", (regions, region_lengths, region_mask), weights, _REGION_FIELDS, backend))


def project_words(
    words: Tensor,
    weights: ContextAttentionWeights,
    word_lengths: Tensor | None = None,
    *,
    word_mask: Tensor | None = None,
    backend: str = "auto",
) -> ProjectedWords:
    """Multiply the words of captions by their weights once, and not again for each call that scores them.

    Args:
        words: (T, N, D) word features.
        weights: the learned tensors; affinity, region_inter and word_intra are used here.
        word_lengths: (T,) integers from 0 to N, the real words of each caption; None means all N.
        word_mask: (T, N) Boolean in its place, as for `context_attention`.
        backend: "auto" or a name of `available_backends()`. Name the backend that scores if scores have to be bit for bit
            those of unprojected features.

    Returns:
        What `context_attention` and `attention_maps` take in place of the words: the features and D + 2·H numbers a
        word.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with what was expected.
        RuntimeError: the backend asked for cannot run this call.
    """
    return ProjectedWords(*_project_alone("words", (words, word_lengths, word_mask), weights, _WORD_FIELDS, backend))


def _checked(
    regions: tuple, words: tuple, weights: ContextAttentionWeights, pairs: Tensor | None, options: arguments.Choice
) -> tuple[Call, reference.Bilinear]:
    """The checked call, whose backend is not chosen yet, and M1 and M2 with intra="features". Weights that the options do not
    read are detached.

    A side is given as its features or what was projected of them, its lengths and its mask.
    """
    dtype = _dtype(regions[0], words[0])
    named_V, V = _checked_side("regions", regions, ProjectedRegions, dtype)
    named_U, U = _checked_side("words", words, ProjectedWords, dtype)
    check_same_width(named_U, named_V)

    fields = _SCORE_FIELDS
    for side, of_side in ((V, _REGION_FIELDS), (U, _WORD_FIELDS)):
        fields += of_side if side.products is None else ()
    if options.bilinear:
        fields += _BILINEAR_FIELDS
        for name, (given, *_), side in (("regions", regions, V), ("words", words, U)):
            if side.products is not None:
                raise ValueError(f"{name}: expected a tensor for intra='features', no projected side, got {type(given).__name__}")
    weights = _checked_weights(weights, fields, named_V, dtype)
    if unread := [x for x in _unread(options) if x in fields]:
        weights = weights._replace(**{x: getattr(weights, x).detach() for x in unread})

    width, hidden = V.features.shape[2], weights.region_score.shape[0]
    if V.products is not None:
        arguments.check_products(Named("regions.products", V.products), named_V, 2 * hidden)
    if U.products is not None:
        arguments.check_products(Named("words.products", U.products), named_U, width + 2 * hidden)
    if pairs is not None:
        check_pairs(pairs, named_V, named_U)
    vectors = Vectors(weights.region_score, weights.word_score)
    matrices = Matrices(**{x: getattr(weights, x) for x in Matrices._fields if x in fields})
    bilinear = (weights.region_bilinear, weights.word_bilinear) if options.bilinear else None
    return Call(V, U, vectors, matrices, pairs, options.of_call, ""), bilinear


def _unread(options: arguments.Choice) -> tuple[str, ...]:
    """The weights that scores do not depend on under these options."""
    _, inter, intra = options.of_call
    unread = () if inter else ("region_inter", "word_inter")
    unread += () if intra else ("region_intra", "word_intra")
    if not inter and (not intra or options.bilinear):
        unread += ("affinity",)
    if not inter and not intra:
        unread += _SCORE_FIELDS
    return unread


def _checked_side(name: str, given: tuple, projected: type, dtype: torch.dtype | None) -> tuple[Named, Side]:
    """A checked side, and its features with the name that errors give them. `given` is what `_checked` takes of a side."""
    items, lengths, mask = given
    if not isinstance(items, projected):
        features = Named(name, cast(items, dtype))
        check_features(*features, f" or {projected.__name__}")
        return features, Side(features.tensor, None, lengths_of(name, lengths, mask, features))
    for what, value in (("lengths", lengths), ("mask", mask)):
        if value is not None:
            expected = f"{name[:-1]}_{what}: expected None, since projected {name} keep their lengths"
            raise ValueError(f"{expected}, got {type(value).__name__}")
    features = Named(f"{name}.features", items.features)
    check_features(*features)
    check_tensor(f"{name}.products", items.products)
    if items.lengths is not None:
        check_lengths(f"{name}.lengths", items.lengths, features)
    return features, Side(*items)


def _checked_weights(
    weights: ContextAttentionWeights, fields: tuple[str, ...], like: Named, dtype: torch.dtype | None
) -> ContextAttentionWeights:
    """The weights with the named fields checked and cast."""
    if not isinstance(weights, ContextAttentionWeights):
        raise TypeError(f"weights: expected ContextAttentionWeights, got {type(weights).__name__}")
    if dtype is not None:
        weights = weights._replace(**{field: cast(getattr(weights, field), dtype) for field in fields})
    arguments.check_weights(weights, fields, like)
    return weights


def _read(call: Call, bilinear: reference.Bilinear) -> list[Tensor]:
    """The floating-point tensors that this call reads."""
    (V, V_products, _), (U, U_products, _), vectors, matrices, *_ = call
    return [x for x in (V, V_products, U, U_products, *vectors, *matrices, *(bilinear or ())) if x is not None]


def _select(requested: str, call: Call, read: list[Tensor], **wanted: bool) -> str:
    """The backend that runs a call, which reads these tensors."""
    V, U = call.regions.features, call.words.features
    sizes = {"regions": V.shape[1], "words": U.shape[1], "width": V.shape[2], "hidden": call.vectors.region_score.shape[0]}
    name = select(NAME, requested, V.device, V.dtype, gradient=wants_gradient(read), **sizes, **wanted)
    if name != "reference":
        refuse_tangents(read, NAME)
    return name


def _project_alone(name: str, given: tuple, weights: ContextAttentionWeights, fields: tuple[str, ...], backend: str) -> Side:
    """The checks and the projection of one side, without a call. `given` is what `_checked` takes of a side."""
    items, lengths, mask = given
    dtype = _dtype(items)
    items = cast(items, dtype)
    check_features(name, items)
    lengths = lengths_of(name, lengths, mask, Named(name, items))
    weights = _checked_weights(weights, fields, Named(name, items), dtype)
    backend = select(NAME, backend, items.device, items.dtype)
    if backend != "reference":
        refuse_tangents((items, *(getattr(weights, field) for field in fields)), NAME)
    with without_autocast(items.device):
        return _project(_placed_side(Side(items, None, lengths), backend), {x: getattr(weights, x) for x in fields}, backend)


def _placed(call: Call, backend: str) -> Call:
    """The call with its tensors as the operators of a backend take them."""
    return Call(
        _placed_side(call.regions, backend),
        _placed_side(call.words, backend),
        Vectors(*map(_contiguous, call.vectors)),
        Matrices(*map(_contiguous, call.matrices)),
        indices_for(call.pairs, call.regions.features, backend),
        call.options,
        backend,
    )


def _placed_side(side: Side, backend: str) -> Side:
    lengths = indices_for(side.lengths, side.features, backend)
    return Side(_contiguous(side.features), _contiguous(side.products), lengths)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _projected(call: Call) -> Call:
    """The same call, whose sides have their products."""
    regions = _project(call.regions, call.matrices.of_regions(), call.backend)
    words = _project(call.words, call.matrices.of_words(), call.backend)
    return Call(regions, words, call.vectors, Matrices(), call.pairs, call.options, call.backend)


def _project(side: Side, matrices: dict[str, Tensor | None], backend: str) -> Side:
    if side.products is not None:
        return side
    projection = Projection(side.features, beside(matrices), side.lengths, backend)
    products = reference.project(projection) if backend == "reference" else differentiable("project")(*projection)
    return Side(side.features, products, side.lengths)


def _gathered(call: Call) -> Call:
    """The same pairs, with one item a pair on a side that is not projected: few pairs do not project a whole gallery."""
    pairs, sides = call.pairs, [call.regions, call.words]
    columns = list(pairs.unbind(1))
    for place, side in enumerate(sides):
        if side.products is None:
            chosen = columns[place].to(side.features.device)
            lengths = None if side.lengths is None else side.lengths.index_select(0, chosen.to(side.lengths.device))
            sides[place] = side._replace(features=side.features.index_select(0, chosen), lengths=lengths)
            columns[place] = torch.arange(pairs.shape[0], device=pairs.device)
    return call._replace(regions=sides[0], words=sides[1], pairs=torch.stack(columns, dim=1))


def _dtype(*items: Tensor | ProjectedRegions | ProjectedWords) -> torch.dtype | None:
    """The dtype to cast to under autocast: that of a side that was projected before, else autocast's. None: nothing is cast."""
    projected = [x.features for x in items if isinstance(x, (ProjectedRegions, ProjectedWords))]
    return autocast_dtype(*([x for x in some if isinstance(x, Tensor)] for some in (items, projected)))

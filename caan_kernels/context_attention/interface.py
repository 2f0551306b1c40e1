"""The operator as it is called: checks, projections, choice of backend."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.autocast import autocast_dtype, cast, without_autocast
from ..core.backends import select
from ..core.checks import Named, check_features, check_lengths, check_pairs, check_same_width
from ..core.derivatives import differentiable, refuse_tangents, wants_gradient
from ..core.indices import indices_for
from . import arguments, reference
from .backends import NAME
from .types import AttentionMaps, ContextAttentionWeights, ProjectedRegions, ProjectedWords

_ops = torch.ops.caan_kernels

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
    similarity: str = "dot",
    inter: bool = True,
    intra: str | None = "semantics",
    backend: str = "auto",
) -> Tensor:
    """Similarity of images and captions under context-aware attention (docs/operator.md).

    Features, products and weights share one dtype and device; lengths and pairs are there too, or on the CPU. Under
    torch.autocast, float16, bfloat16 and float32 features and weights are cast to autocast's dtype, as torch.matmul
    casts its own; what was projected before keeps its dtype, and the rest is cast to that; float64 is left alone.

    Args:
        regions: (I, M, D) region features, float16, bfloat16, float32 or float64; or the result of `project_regions`.
        words: (T, N, D) word features; or the result of `project_words`.
        weights: the learned tensors. The matrices of a side that is projected already are not read.
        region_lengths: (I,) integers from 0 to M, the real regions of each image; None means all M. What lies beyond
            may hold anything, NaN included. Stays None for projected regions, which have their own.
        word_lengths: (T,) integers from 0 to N, likewise for captions.
        pairs: (P, 2) int64, rows (image, caption); None means every image with every caption.
        similarity: of the two pooled vectors: "dot", the paper's inner product (18), or "cosine".
        inter: keep the context gathered from the other side, C U Q2 and Rᵀ V Q4 in (8, 10).
        intra: the affinity by which context is gathered from the own side: "semantics", by (16, 17); "features", by
            (14, 15), on the reference only and not for projected sides; None drops that context.
        backend: "auto" or a name of `available_backends()`.

    Returns:
        (I, T) scores, or (P,) with pairs; float32, or float64 for float64. A pair with an empty side scores 0.
        Features, products and weights have first derivatives, those that the options do not read have none; a second
        derivative is an error, except on the reference.

    Raises:
        TypeError: a type or dtype that does not fit.
        ValueError: a rank, width, device, length, pair, option or backend's name that does not fit.
        RuntimeError: the backend asked for cannot run this call; under torch.compile, a length or pair out of range.
    """
    arguments.check_options(similarity, inter, intra)
    call = _checked(regions, words, weights, region_lengths, word_lengths, pairs, inter, intra)
    name = _select(backend, call)
    options = (similarity == "cosine", inter, intra is not None)
    with without_autocast(call.regions.features.device):
        if name == "reference":
            return reference.pair_scores(*_projected(call, name), *options, call.bilinear)
        if wants_gradient(_read(call)):
            return differentiable("pair_scores")(*_projected(call, name), *options, name)
        return _ops.raw_scores(*_raw(call, name), *options, name)


def attention_maps(
    regions: Tensor | ProjectedRegions,
    words: Tensor | ProjectedWords,
    weights: ContextAttentionWeights,
    pairs: Tensor,
    region_lengths: Tensor | None = None,
    word_lengths: Tensor | None = None,
    *,
    similarity: str = "dot",
    inter: bool = True,
    intra: str | None = "semantics",
    backend: str = "auto",
) -> AttentionMaps:
    """Scores of a few pairs and the attention they came from.

    Maps have derivatives on the reference only: "auto" takes it where a gradient is wanted, the other backends refuse.

    Args:
        pairs: (P, 2) int64, rows (image, caption).
        regions, words, weights, region_lengths, word_lengths: as for `context_attention`.
        similarity, inter, intra, backend: as for `context_attention`.

    Returns:
        The maps, float32, or float64 for float64; P · (M² + N² + 3MN) numbers and a few. Without an intra term, the
        affinities are those of "semantics".

    Raises:
        TypeError, ValueError, RuntimeError: as `context_attention`.
    """
    if pairs is None:
        raise TypeError("pairs: expected a tensor of shape (P, 2), got None")
    arguments.check_options(similarity, inter, intra)
    call = _checked(regions, words, weights, region_lengths, word_lengths, pairs, inter, intra)
    name = _select(backend, call, maps=True)
    options = (similarity == "cosine", inter, intra is not None)
    with without_autocast(call.regions.features.device):
        call = _gathered(call)
        if name == "reference":
            return AttentionMaps(*reference.pair_maps(*_projected(call, name), *options, call.bilinear))
        scores, f, g, A, C, Rt = _ops.pair_maps(*_projected(call, name), *options, name)
        return AttentionMaps(scores, f, g, A, C, Rt, reference.second_order(C), reference.second_order(Rt))


def project_regions(
    regions: Tensor, weights: ContextAttentionWeights, region_lengths: Tensor | None = None, *, backend: str = "auto"
) -> ProjectedRegions:
    """Do once for an image what every caption would otherwise repeat.

    Args:
        regions: (I, M, D) region features.
        weights: the learned tensors; region_intra and word_inter are used here.
        region_lengths: (I,) integers from 0 to M, the real regions of each image; None means all M.
        backend: "auto" or a name of `available_backends()`; the one that is to score, where bits matter.

    Returns:
        What `context_attention` and `attention_maps` take in place of the regions: the features and 2·H numbers a
        region.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with what was expected.
        RuntimeError: the backend asked for cannot run this call.
    """
    return ProjectedRegions(*_project_alone("regions", regions, weights, _REGION_FIELDS, region_lengths, backend))


def project_words(
    words: Tensor, weights: ContextAttentionWeights, word_lengths: Tensor | None = None, *, backend: str = "auto"
) -> ProjectedWords:
    """Do once for a caption what every image would otherwise repeat.

    Args:
        words: (T, N, D) word features.
        weights: the learned tensors; affinity, region_inter and word_intra are used here.
        word_lengths: (T,) integers from 0 to N, the real words of each caption; None means all N.
        backend: "auto" or a name of `available_backends()`; the one that is to score, where bits matter.

    Returns:
        What `context_attention` and `attention_maps` take in place of the words: the features and D + 2·H numbers a
        word.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with what was expected.
        RuntimeError: the backend asked for cannot run this call.
    """
    return ProjectedWords(*_project_alone("words", words, weights, _WORD_FIELDS, word_lengths, backend))


class _Side(NamedTuple):
    """Regions or words; products are None where they come as features."""

    features: Tensor
    products: Tensor | None
    lengths: Tensor | None
    fields: tuple[str, ...]


class _Call(NamedTuple):
    """The checked tensors of a call.

    Attributes:
        weights: those that the options do not read are detached.
        bilinear: M1 and M2 with intra="features", else None.
    """

    regions: _Side
    words: _Side
    weights: ContextAttentionWeights
    pairs: Tensor | None
    bilinear: tuple[Tensor, Tensor] | None


def _checked(regions, words, weights, region_lengths, word_lengths, pairs, inter: bool, intra: str | None) -> _Call:
    dtype = _dtype(regions, words)
    V_name, V = _checked_side("regions", regions, ProjectedRegions, _REGION_FIELDS, region_lengths, dtype)
    U_name, U = _checked_side("words", words, ProjectedWords, _WORD_FIELDS, word_lengths, dtype)
    named_V, named_U = Named(V_name, V.features), Named(U_name, U.features)
    check_same_width(named_U, named_V)

    fields = _SCORE_FIELDS
    for side in (V, U):
        fields += side.fields if side.products is None else ()
    if intra == "features":
        fields += _BILINEAR_FIELDS
        for name, given, side in (("regions", regions, V), ("words", words, U)):
            if side.products is not None:
                raise ValueError(f"{name}: expected a tensor with intra='features', got {type(given).__name__}")
    weights = _checked_weights(weights, fields, named_V, dtype)
    unread = _unread(inter, intra)
    weights = weights._replace(**{field: getattr(weights, field).detach() for field in unread if field in fields})

    width, hidden = V.features.shape[2], weights.region_score.shape[0]
    if V.products is not None:
        arguments.check_products(Named("regions.products", V.products), named_V, 2 * hidden)
    if U.products is not None:
        arguments.check_products(Named("words.products", U.products), named_U, width + 2 * hidden)
    if pairs is not None:
        check_pairs(pairs, named_V, named_U)
    return _Call(V, U, weights, pairs, weights[-2:] if intra == "features" else None)


def _unread(inter: bool, intra: str | None) -> tuple[str, ...]:
    """The weights that scores do not depend on under these options."""
    unread = () if inter else ("region_inter", "word_inter")
    unread += () if intra else ("region_intra", "word_intra")
    if not inter and intra != "semantics":
        unread += ("affinity",)
    if not inter and not intra:
        unread += _SCORE_FIELDS
    return unread


def _checked_side(
    name: str, given, projected: type, fields: tuple[str, ...], lengths: Tensor | None, dtype: torch.dtype | None
) -> tuple[str, _Side]:
    """A side and what errors call its features."""
    lengths_name, products = f"{name[:-1]}_lengths", None
    if isinstance(given, projected):
        if lengths is not None:
            what = type(lengths).__name__
            raise ValueError(f"{lengths_name}: expected None, since projected {name} keep their lengths, got {what}")
        name, lengths_name = f"{name}.features", f"{name}.lengths"
        features, products, lengths = given
    else:
        features = cast(given, dtype)
    check_features(name, features, f" or {projected.__name__}")
    if lengths is not None:
        check_lengths(lengths_name, lengths, Named(name, features))
    return name, _Side(features, products, lengths, fields)


def _checked_weights(
    weights: ContextAttentionWeights, fields: tuple[str, ...], like: Named, dtype: torch.dtype | None
) -> ContextAttentionWeights:
    """The weights with the named fields checked and cast."""
    if not isinstance(weights, ContextAttentionWeights):
        raise TypeError(f"weights: expected ContextAttentionWeights, got {type(weights).__name__}")
    weights = weights._replace(**{field: cast(getattr(weights, field), dtype) for field in fields})
    arguments.check_weights(weights, fields, like)
    return weights


def _read(call: _Call) -> list[Tensor]:
    """The floating-point tensors that this call reads."""
    read = [call.weights.region_score, call.weights.word_score, *(call.bilinear or ())]
    for side in (call.regions, call.words):
        read.append(side.features)
        read += [getattr(call.weights, x) for x in side.fields] if side.products is None else [side.products]
    return read


def _select(requested: str, call: _Call, maps: bool = False) -> str:
    """The backend that runs a call."""
    V, U = call.regions.features, call.words.features
    wanted = {"gradient": wants_gradient(_read(call)), "maps": maps, "bilinear": call.bilinear is not None}
    name = select(NAME, requested, V.device, V.dtype, regions=V.shape[1], words=U.shape[1], **wanted)
    if name != "reference":
        refuse_tangents(_read(call), NAME)
    return name


def _project_alone(
    name: str, items: Tensor, weights: ContextAttentionWeights, fields: tuple[str, ...], lengths: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, products and lengths of a side that is projected by itself."""
    dtype = _dtype(items)
    items = cast(items, dtype)
    check_features(name, items)
    if lengths is not None:
        check_lengths(f"{name[:-1]}_lengths", lengths, Named(name, items))
    weights = _checked_weights(weights, fields, Named(name, items), dtype)
    backend = select(NAME, backend, items.device, items.dtype)
    if backend != "reference":
        refuse_tangents((items, *(getattr(weights, field) for field in fields)), NAME)
    with without_autocast(items.device):
        return _project(_Side(items, None, lengths, fields), weights, backend)


def _project(side: _Side, weights: ContextAttentionWeights, backend: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, products and lengths as the operators take them."""
    features, lengths = side.features.contiguous(), indices_for(side.lengths, side.features, backend)
    if side.products is not None:
        return features, side.products.contiguous(), lengths
    matrices = _columns(weights, side.fields)
    if backend == "reference":
        return features, reference.project(features, matrices, lengths), lengths
    return features, differentiable("project")(features, matrices, lengths, backend), lengths


def _projected(call: _Call, backend: str) -> tuple[Tensor | None, ...]:
    """The tensors of pair_scores; a side that comes as features is projected."""
    V, region_products, region_lengths = _project(call.regions, call.weights, backend)
    U, word_products, word_lengths = _project(call.words, call.weights, backend)
    pairs = indices_for(call.pairs, V, backend)
    return V, region_products, U, word_products, *_score_vectors(call), region_lengths, word_lengths, pairs


def _gathered(call: _Call) -> _Call:
    """The same pairs, of sides that hold one item a pair where they come unprojected: a gallery is not projected for a few."""
    pairs, sides = call.pairs, [call.regions, call.words]
    columns = list(pairs.unbind(1))
    for place, side in enumerate(sides):
        if side.products is None:
            chosen = columns[place].to(side.features.device)
            lengths = None if side.lengths is None else side.lengths.index_select(0, chosen.to(side.lengths.device))
            sides[place] = side._replace(features=side.features.index_select(0, chosen), lengths=lengths)
            columns[place] = torch.arange(pairs.shape[0], device=pairs.device)
    return call._replace(regions=sides[0], words=sides[1], pairs=torch.stack(columns, dim=1))


def _raw(call: _Call, backend: str) -> tuple[Tensor | None, ...]:
    """The tensors of raw_scores: products of the sides that have them, matrices of those that have not."""
    V, U = call.regions, call.words
    read = {field for side in (V, U) if side.products is None for field in side.fields}
    matrices = (_contiguous(getattr(call.weights, x) if x in read else None) for x in ContextAttentionWeights._fields[:5])
    indices = (indices_for(x, V.features, backend) for x in (V.lengths, U.lengths, call.pairs))
    sides = (_contiguous(x) for side in (V, U) for x in (side.features, side.products))
    return *sides, *matrices, *_score_vectors(call), *indices


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _score_vectors(call: _Call) -> tuple[Tensor, Tensor]:
    return call.weights.region_score.contiguous(), call.weights.word_score.contiguous()


def _columns(weights: ContextAttentionWeights, fields: tuple[str, ...]) -> Tensor:
    """The matrices side by side; affinity stands transposed, because words are multiplied by it and regions are not."""
    return torch.cat([weights.affinity.mT if field == "affinity" else getattr(weights, field) for field in fields], dim=1)


def _dtype(*items: Tensor | ProjectedRegions | ProjectedWords) -> torch.dtype | None:
    """The dtype that autocast asks for: that of a side which was projected before, else its own; None to leave all as it is."""
    projected = [x.features for x in items if isinstance(x, (ProjectedRegions, ProjectedWords))]
    return autocast_dtype([x for x in items if isinstance(x, Tensor)], projected)

"""What the operator takes and gives, and the errors for everything else.

Every error names the argument, what was expected and what came: `TypeError` for a wrong type or dtype, `ValueError` for
a wrong rank, width, device, length or index. Values of lengths and pairs are looked at only where they are there and that
makes nobody wait: on the CPU, and not while a graph is traced. The kernels look again.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

FEATURE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SIMILARITIES = ("dot", "cosine")
INTRAS = ("semantics", "features", None)
INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class ContextAttentionWeights(NamedTuple):
    """The operator's learned tensors; D is the width of the features, H the hidden width.

    Attributes:
        affinity: (D, D), bilinear affinity of region and word (the paper's K).
        region_intra: (D, H), context of a region gathered from regions (Q1).
        region_inter: (D, H), context of a region gathered from words (Q2).
        word_intra: (D, H), context of a word gathered from words (Q3).
        word_inter: (D, H), context of a word gathered from regions (Q4).
        region_score: (H,), logit of a region's attention (W^v).
        word_score: (H,), logit of a word's attention (W^u).
        region_bilinear: (D, D), affinity of two regions (M1); needed with intra="features", not read otherwise.
        word_bilinear: (D, D), affinity of two words (M2); likewise.
    """

    affinity: Tensor
    region_intra: Tensor
    region_inter: Tensor
    word_intra: Tensor
    word_inter: Tensor
    region_score: Tensor
    word_score: Tensor
    region_bilinear: Tensor | None = None
    word_bilinear: Tensor | None = None


class ProjectedRegions(NamedTuple):
    """Images ready to be scored, from `project_regions`.

    Attributes:
        features: (I, M, D) regions.
        products: (I, M, 2H), [V region_intra | V word_inter].
        lengths: (I,) number of real regions in each image; None means all M.
    """

    features: Tensor
    products: Tensor
    lengths: Tensor | None


class ProjectedWords(NamedTuple):
    """Captions ready to be scored, from `project_words`.

    Attributes:
        features: (T, N, D) words.
        products: (T, N, D + 2H), [U affinityᵀ | U region_inter | U word_intra].
        lengths: (T,) number of real words in each caption; None means all N.
    """

    features: Tensor
    products: Tensor
    lengths: Tensor | None


class AttentionMaps(NamedTuple):
    """Scores and what they came from, pair by pair; 0 beyond the lengths, and all 0 for a pair with an empty side.

    Attributes:
        scores: (P,).
        region_attention: (P, M), f.
        word_attention: (P, N), g.
        alignment: (P, M, N), A (7).
        word_to_region: (P, M, N), C (12): column j holds the weights of word j over the regions.
        region_to_word: (P, N, M), Rᵀ (13): column r holds the weights of region r over the words.
        region_affinity: (P, M, M), Hᵛ: by (14) with intra="features", else by (16).
        word_affinity: (P, N, N), Hᵘ: by (15) or (17).
    """

    scores: Tensor
    region_attention: Tensor
    word_attention: Tensor
    alignment: Tensor
    word_to_region: Tensor
    region_to_word: Tensor
    region_affinity: Tensor
    word_affinity: Tensor


for _type in (ContextAttentionWeights, ProjectedRegions, ProjectedWords, AttentionMaps):
    # torch.load makes only what was declared safe, and torch.export saves only what has a name.
    torch.serialization.add_safe_globals([_type])
    torch.utils._pytree._register_namedtuple(_type, serialized_type_name=f"caan_kernels.{_type.__name__}")


class Named(NamedTuple):
    """A tensor and what an error calls it."""

    name: str
    tensor: Tensor


def check_features(name: str, features: Tensor, or_projected: str = "") -> None:
    """(B, L, D), floating."""
    if not isinstance(features, Tensor):
        raise TypeError(f"{name}: expected a tensor{or_projected}, got {type(features).__name__}")
    if features.dtype not in FEATURE_DTYPES:
        raise TypeError(f"{name}: expected dtype float16, bfloat16, float32 or float64, got {features.dtype}")
    if features.dim() != 3:
        raise ValueError(f"{name}: expected 3 dimensions (items, rows, width), got shape {tuple(features.shape)}")
    if features.shape[2] == 0:
        raise ValueError(f"{name}: expected a width of at least 1, got shape {tuple(features.shape)}")


def check_words_like_regions(words: Named, regions: Named) -> None:
    """One width, dtype and device."""
    _check_alike(words, regions)
    width = regions.tensor.shape[2]
    if words.tensor.shape[2] != width:
        raise ValueError(f"{words.name}: expected width {width}, that of {regions.name}, got shape {tuple(words.tensor.shape)}")


def check_weights(weights: ContextAttentionWeights, fields: tuple[str, ...], like: Named) -> None:
    """The fields that will be read fit each other and the features."""
    width, hidden, hidden_of = like.tensor.shape[2], None, ""
    for field in fields:
        weight, letters = Named(f"weights.{field}", getattr(weights, field)), _letters(field)
        _check_tensor(*weight)
        _check_alike(weight, like)
        shape, named_shape = tuple(weight.tensor.shape), f"({', '.join(letters)})"
        if len(shape) != len(letters) or 0 in shape:
            raise ValueError(f"{weight.name}: expected shape {named_shape}, nothing of it 0, got {shape}")
        if hidden is None and letters[-1] == "H":
            hidden, hidden_of = shape[-1], weight.name
        expected = tuple(width if letter == "D" else hidden for letter in letters)
        if shape != expected:
            raise ValueError(
                f"{weight.name}: expected shape {named_shape} = {expected}, D from {like.name} and H from {hidden_of}, got {shape}"
            )


def check_products(products: Named, features: Named, expected_width: int) -> None:
    """Products belong to their features and to the weights of this call."""
    _check_tensor(*products)
    _check_alike(products, features)
    expected = (*features.tensor.shape[:2], expected_width)
    if tuple(products.tensor.shape) != expected:
        raise ValueError(f"{products.name}: expected shape {expected}, got {tuple(products.tensor.shape)}")


def check_lengths(name: str, lengths: Tensor, items: Named) -> None:
    """(B,) integers from 0 to L, for (B, L, D) items."""
    count, rows = items.tensor.shape[:2]
    _check_tensor(name, lengths)
    if lengths.dtype not in INDEX_DTYPES:
        raise TypeError(f"{name}: expected an integer dtype, got {lengths.dtype}")
    if tuple(lengths.shape) != (count,):
        raise ValueError(f"{name}: expected shape ({count},), one for each item of {items.name}, got {tuple(lengths.shape)}")
    _check_index_device(name, lengths, items)
    _check_values(name, lengths, rows, f"the number of rows in {items.name}")


def check_pairs(pairs: Tensor, regions: Named, words: Named) -> None:
    """(P, 2) int64 indices (image, caption)."""
    _check_tensor("pairs", pairs)
    if pairs.dtype != torch.int64:
        raise TypeError(f"pairs: expected dtype torch.int64, got {pairs.dtype}")
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: expected shape (P, 2), got {tuple(pairs.shape)}")
    _check_index_device("pairs", pairs, regions)
    for column, items in enumerate((regions, words)):
        _check_values(f"pairs[:, {column}]", pairs[:, column], items.tensor.shape[0] - 1, f"the last item of {items.name}")


def check_options(similarity: str, inter: bool, intra: str | None) -> None:
    """The choices between forms of the equations."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity: expected 'dot' or 'cosine', got {similarity!r}")
    if not isinstance(inter, bool):
        raise TypeError(f"inter: expected True or False, got {inter!r}")
    if intra is not None and not isinstance(intra, str):
        raise TypeError(f"intra: expected 'semantics', 'features' or None, got {intra!r}")
    if intra not in INTRAS:
        raise ValueError(f"intra: expected 'semantics', 'features' or None, got {intra!r}")


def _letters(field: str) -> str:
    if field in ("affinity", "region_bilinear", "word_bilinear"):
        return "DD"
    return "H" if field in ("region_score", "word_score") else "DH"


def _check_tensor(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def _check_alike(one: Named, like: Named) -> None:
    if one.tensor.dtype != like.tensor.dtype:
        raise TypeError(f"{one.name}: expected dtype {like.tensor.dtype}, that of {like.name}, got {one.tensor.dtype}")
    if one.tensor.device != like.tensor.device:
        raise ValueError(f"{one.name}: expected device {like.tensor.device}, that of {like.name}, got {one.tensor.device}")


def _check_index_device(name: str, indices: Tensor, items: Named) -> None:
    device = items.tensor.device
    if indices.device.type != "cpu" and indices.device != device:
        raise ValueError(f"{name}: expected device cpu or {device}, that of {items.name}, got {indices.device}")


def _check_values(name: str, indices: Tensor, highest: int, meaning: str) -> None:
    if torch.compiler.is_compiling() or indices.device.type != "cpu" or indices.numel() == 0:
        return
    *_, indices = layers(indices)
    if get_proxy_mode() is not None:
        return
    lowest_found, highest_found = indices.aminmax()
    if isinstance(lowest_found, FakeTensor):
        return
    if int(lowest_found) < 0 or int(highest_found) > highest:
        wrong = indices[(indices < 0) | (indices > highest)]
        raise ValueError(f"{name}: expected values from 0 to {highest}, {meaning}, got {int(wrong[0])}")


def layers(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, and what torch.func's transforms have wrapped in it, one within the other; under torch.vmap that is a batch."""
    yield tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
        yield tensor

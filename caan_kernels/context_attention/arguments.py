"""Errors for what only this operator takes: its weights, products and options."""

from typing import NamedTuple

from ..core.checks import Named, check_alike, check_tensor
from .call import Options
from .types import ContextAttentionWeights

SIMILARITIES = ("dot", "cosine")
INTRAS = ("semantics", "features", None)
# The sizes of each weight.
_LETTERS = {
    **dict.fromkeys(("affinity", "region_bilinear", "word_bilinear"), "DD"),
    **dict.fromkeys(("region_intra", "region_inter", "word_intra", "word_inter"), "DH"),
    **dict.fromkeys(("region_score", "word_score"), "H"),
}


def check_weights(weights: ContextAttentionWeights, fields: tuple[str, ...], like: Named) -> None:
    """The fields that will be read fit each other and the features."""
    width, hidden, hidden_of = like.tensor.shape[2], None, ""
    for field in fields:
        weight, letters = Named(f"weights.{field}", getattr(weights, field)), _LETTERS[field]
        check_tensor(*weight)
        check_alike(weight, like)
        shape = weight.tensor.shape
        if len(shape) != len(letters) or 0 in shape:
            raise ValueError(f"{weight.name}: expected shape {_shape(letters)}, every size at least 1, got {tuple(shape)}")
        if hidden is None and letters[-1] == "H":
            hidden, hidden_of = shape[-1], weight.name
        expected = (hidden,) if letters == "H" else (width, hidden if letters == "DH" else width)
        if shape != expected:
            raise ValueError(
                f"{weight.name}: expected shape {_shape(letters)} = {expected}, D from {like.name} and H from {hidden_of}, "
                f"got {tuple(shape)}"
            )


def _shape(letters: str) -> str:
    return f"({', '.join(letters)})"


def check_products(products: Named, features: Named, expected_width: int) -> None:
    """Products belong to their features and to the weights of this call."""
    check_tensor(*products)
    check_alike(products, features)
    expected = (*features.tensor.shape[:2], expected_width)
    if products.tensor.shape != expected:
        raise ValueError(f"{products.name}: expected shape {expected}, got {tuple(products.tensor.shape)}")


class Choice(NamedTuple):
    """The options of a call.

    Attributes:
        of_call: what every backend knows.
        bilinear: whether the term of the own side is that of (14, 15).
    """

    of_call: Options
    bilinear: bool


def checked_options(similarity: str, inter: bool, intra: str | None) -> Choice:
    """The choices between forms of the equations."""
    if not isinstance(similarity, str):
        raise TypeError(f"similarity: expected 'dot' or 'cosine', got {similarity!r}")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity: expected 'dot' or 'cosine', got {similarity!r}")
    if not isinstance(inter, bool):
        raise TypeError(f"inter: expected True or False, got {inter!r}")
    if intra is not None and not isinstance(intra, str):
        raise TypeError(f"intra: expected 'semantics', 'features' or None, got {intra!r}")
    if intra not in INTRAS:
        raise ValueError(f"intra: expected 'semantics', 'features' or None, got {intra!r}")
    return Choice(Options(similarity == "cosine", inter, intra is not None), intra == "features")

"""Errors for what only this operator takes: its weights, products and options."""

from typing import NamedTuple

from ..core.checks import Named, check_alike, check_tensor
from .call import Options
from .types import ContextAttentionWeights

SIMILARITIES = ("dot", "cosine")
INTRAS = ("semantics", "features", None)


def check_weights(weights: ContextAttentionWeights, fields: tuple[str, ...], like: Named) -> None:
    """The fields that will be read fit each other and the features."""
    width, hidden, hidden_of = like.tensor.shape[2], None, ""
    for field in fields:
        weight, letters = Named(f"weights.{field}", getattr(weights, field)), _letters(field)
        check_tensor(*weight)
        check_alike(weight, like)
        shape, named_shape = tuple(weight.tensor.shape), f"({', '.join(letters)})"
        if len(shape) != len(letters) or 0 in shape:
            raise ValueError(f"{weight.name}: expected shape {named_shape}, every size at least 1, got {shape}")
        if hidden is None and letters[-1] == "H":
            hidden, hidden_of = shape[-1], weight.name
        expected = tuple(width if letter == "D" else hidden for letter in letters)
        if shape != expected:
            raise ValueError(
                f"{weight.name}: expected shape {named_shape} = {expected}, D from {like.name} and H from {hidden_of}, got {shape}"
            )


def check_products(products: Named, features: Named, expected_width: int) -> None:
    """Products belong to their features and to the weights of this call."""
    check_tensor(*products)
    check_alike(products, features)
    expected = (*features.tensor.shape[:2], expected_width)
    if tuple(products.tensor.shape) != expected:
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
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity: expected 'dot' or 'cosine', got {similarity!r}")
    if not isinstance(inter, bool):
        raise TypeError(f"inter: expected True or False, got {inter!r}")
    if intra is not None and not isinstance(intra, str):
        raise TypeError(f"intra: expected 'semantics', 'features' or None, got {intra!r}")
    if intra not in INTRAS:
        raise ValueError(f"intra: expected 'semantics', 'features' or None, got {intra!r}")
    return Choice(Options(similarity == "cosine", inter, intra is not None), intra == "features")


def _letters(field: str) -> str:
    if field in ("affinity", "region_bilinear", "word_bilinear"):
        return "DD"
    return "H" if field in ("region_score", "word_score") else "DH"

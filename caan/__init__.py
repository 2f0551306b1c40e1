"""CAAN, context-aware attention for image-text retrieval: the field's data formats, model, loss and protocol.

A program begins with `caan.load`, `caan.Gallery` or `caan.extract`.

Names are imported when they are asked for: `import caan` takes no time, and waits for no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.extracting import extract
    from .api.gallery import Found, Gallery
    from .api.model import EncodedImages, EncodedTexts, Hit, Model, load
    from .errors import DataError, FormatError, MissingFileError
    from .loss import triplet_loss
    from .model import CAAN, ModelConfig
    from .recall import RankCounter
    from .vocabulary import Vocabulary, tokenize

__all__ = [
    "CAAN",
    "DataError",
    "EncodedImages",
    "EncodedTexts",
    "FormatError",
    "Found",
    "Gallery",
    "Hit",
    "MissingFileError",
    "Model",
    "ModelConfig",
    "RankCounter",
    "Vocabulary",
    "extract",
    "load",
    "tokenize",
    "triplet_loss",
]

# Where each public name is.
_MODULES = {
    "CAAN": "model",
    "DataError": "errors",
    "EncodedImages": "api.model",
    "EncodedTexts": "api.model",
    "FormatError": "errors",
    "Found": "api.gallery",
    "Gallery": "api.gallery",
    "Hit": "api.model",
    "MissingFileError": "errors",
    "Model": "api.model",
    "ModelConfig": "model",
    "RankCounter": "recall",
    "Vocabulary": "vocabulary",
    "extract": "api.extracting",
    "load": "api.model",
    "tokenize": "vocabulary",
    "triplet_loss": "loss",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        found = _version()
    elif name in _MODULES:
        found = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """That of the package which is installed: pyproject.toml says it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("caan_kernels")
    except PackageNotFoundError:
        return "0+unknown"

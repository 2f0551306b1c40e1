"""CAAN, context-aware attention for image-text retrieval: the field's data formats, model, loss and protocol."""

from .errors import DataError
from .loss import triplet_loss
from .model import CAAN, ModelConfig
from .recall import RankCounter
from .vocabulary import Vocabulary, tokenize

__all__ = ["CAAN", "DataError", "ModelConfig", "RankCounter", "Vocabulary", "tokenize", "triplet_loss"]

"""Kernels for context-aware attention in image-text retrieval."""

from .context_attention.interface import attention_maps, context_attention, project_regions, project_words
from .context_attention.module import ContextAwareAttention
from .context_attention.types import AttentionMaps, ContextAttentionWeights, ProjectedRegions, ProjectedWords
from .context_attention.warmup import warmup
from .core import library as _library
from .core.backends import available_backends
from .core.cpu import build_info
from .core.namespace import version as _version
from .max_similarity.interface import max_similarity

_library.load()

__version__: str = _version()

__all__ = [
    "AttentionMaps",
    "ContextAttentionWeights",
    "ContextAwareAttention",
    "ProjectedRegions",
    "ProjectedWords",
    "attention_maps",
    "available_backends",
    "build_info",
    "context_attention",
    "max_similarity",
    "project_regions",
    "project_words",
    "warmup",
]

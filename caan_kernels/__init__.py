"""Kernels for context-aware attention in image-text retrieval."""

from .backends import available_backends, build_info
from .context_attention.arguments import AttentionMaps, ContextAttentionWeights, ProjectedRegions, ProjectedWords
from .context_attention.interface import attention_maps, context_attention, project_regions, project_words

__all__ = [
    "AttentionMaps",
    "ContextAttentionWeights",
    "ProjectedRegions",
    "ProjectedWords",
    "attention_maps",
    "available_backends",
    "build_info",
    "context_attention",
    "project_regions",
    "project_words",
]

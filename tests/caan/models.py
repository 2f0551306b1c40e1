"""Models that nobody has trained, but whose attention is not the plain mean."""

import torch

from caan import CAAN


def attentive(model: CAAN) -> CAAN:
    """The model with random score vectors, which start at 0."""
    with torch.no_grad():
        for vector in (model.attention.region_score, model.attention.word_score):
            vector.normal_(std=len(vector) ** -0.5)
    return model

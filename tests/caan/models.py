"""Models that nobody has trained, but whose attention is not the plain mean; and what they score."""

import torch

import caan_kernels as ck
from caan import CAAN, ModelConfig, Vocabulary
from caan.data import Captions, Images


def attentive(model: CAAN) -> CAAN:
    """The model with random score vectors, which start at 0."""
    with torch.no_grad():
        for vector in (model.attention.region_score, model.attention.word_score):
            vector.normal_(std=len(vector) ** -0.5)
    return model


def make_model(split, seed, words=None, width=16, **options):
    torch.manual_seed(seed)
    vocabulary = words or Vocabulary.from_captions(split.captions, 1)
    config = ModelConfig(6, len(vocabulary), width=width, word_width=5, dropout=0.5, word_drop=0.5, **options)
    return attentive(CAAN(config)), vocabulary


def new_model(vocabulary, **options):
    """Without dropout, unless the options say so."""
    torch.manual_seed(0)
    return attentive(CAAN(ModelConfig(6, len(vocabulary), width=16, hidden_width=12, word_width=10, **options)))


@torch.no_grad()
def whole_matrix(models, split):
    """Scores from one call a model, by the reference."""
    result = 0
    for model, vocabulary in models:
        model.eval()
        images, captions = Images(split), Captions(split, vocabulary)
        regions = model.encode_images(images.collate([images[i] for i in range(len(images))]))
        words = model.encode_captions(captions.collate([captions[t] for t in range(len(captions))]))
        result = result + ck.context_attention(
            regions.features, words.features, model.attention.weights, regions.lengths, words.lengths, **model.attention.options,
            backend="reference",
        )  # fmt: skip
    return result / len(models)

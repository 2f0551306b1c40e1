"""Lengths, said as masks."""

from torch import Tensor, arange


def mask_of(items: Tensor, lengths: Tensor) -> Tensor:
    """True for the real rows of padded items, which come first."""
    return (arange(items.shape[1]) < lengths[:, None]).to(items.device)


def masks_of(case) -> dict[str, Tensor]:
    """Both sides of a problem, by the names of the arguments."""
    return {
        "region_mask": mask_of(case.regions, case.region_lengths),
        "word_mask": mask_of(case.words, case.word_lengths),
    }

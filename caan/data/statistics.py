"""Statistics of a split's features."""

import torch

from ..progress import watched
from .splits import Split


def channel_statistics(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel over all real regions of a split, (F,) float32 each."""
    total = torch.zeros(2, split.regions.width, dtype=torch.float64, device="cpu")
    for image in watched(range(split.num_images), "channel statistics", "images"):
        values = torch.from_numpy(split.read_regions(image)).double()
        total += torch.stack((values.sum(dim=0), values.square().sum(dim=0)))
    mean, square = total / float(split.region_counts.sum())
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()

"""What tests of the limits of launches share: launches are recorded and not run, and tensors have no memory."""

import pytest
import torch

from caan_kernels.core.records import layout, unflatten

# Seconds on an H100, by estimate.
MOST_SECONDS = 0.05
both_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
all_pairs_or_listed = pytest.mark.parametrize("listed", [0, 2**18], ids=["all_pairs", "list"])


def of_no_memory(dtype, *shape):
    """A tensor of one number that stands for all of them."""
    return torch.zeros(1, dtype=dtype).expand(shape)


class Recorded:
    """Stands where torch's operators stand, and keeps the records of launches; kinds of records by the names of operators."""

    def __init__(self, **kinds):
        self.kinds = kinds
        self.records = []

    def __getattr__(self, name):
        return lambda *arguments: self.records.append(unflatten(layout(self.kinds[name]), arguments))

"""Problems on the GPU."""

from dataclasses import replace

import cases
import torch


def on_device(case):
    """The problem with lengths and pairs on the GPU too, where their values are not checked."""
    indices = {name: getattr(case, name) for name in ("region_lengths", "word_lengths", "pairs")}
    return replace(case.to("cuda"), **{name: x if x is None else x.cuda() for name, x in indices.items()})


def drawn(dtype=torch.float32, **given):
    return on_device(cases.problem("odd", dtype, **given))

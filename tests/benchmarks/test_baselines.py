import time
from dataclasses import replace

import pytest
import torch
from baselines import CompileTimeout, attention_by, gradients, loop_over_captions, time_limit
from workloads import Workload, cast_weights, loss_gradient, make_weights

import caan_kernels as ck


def workload(dtype=torch.float64, **changes):
    generator = torch.Generator().manual_seed(0)
    regions, words = (torch.randn(4, n, 8, generator=generator, dtype=torch.float64) for n in (5, 6))
    lengths = torch.tensor([6, 1, 3, 4])
    weights = cast_weights(make_weights(8, 7, seed=0), dtype)
    whole = Workload("small", True, regions.to(dtype), words.to(dtype), lengths, weights)
    return replace(whole, **changes)


def test_the_loop_gives_the_scores_of_the_reference():
    torch.testing.assert_close(loop_over_captions(workload()), attention_by("reference")(workload()))


def test_the_loop_gives_the_scores_of_a_pair_list_in_its_order():
    pairs = torch.tensor([[3, 2], [0, 0], [1, 2], [3, 1], [0, 0]])
    listed = loop_over_captions(workload(pairs=pairs))
    scores = loop_over_captions(workload())
    torch.testing.assert_close(listed, scores[pairs[:, 0], pairs[:, 1]])


def test_the_loop_takes_a_projected_gallery():
    plain = workload()
    gallery = ck.project_regions(plain.regions, plain.weights)
    torch.testing.assert_close(loop_over_captions(replace(plain, gallery=gallery)), loop_over_captions(plain))


def test_the_loop_gives_the_gradients_of_the_reference():
    upstream = loss_gradient(attention_by("reference")(workload()))
    for scores, exact in zip(
        gradients(loop_over_captions, workload(), upstream),
        gradients(attention_by("reference"), workload(), upstream),
        strict=True,
    ):
        torch.testing.assert_close(scores, exact)


def test_the_loop_widens_half_precision():
    assert loop_over_captions(workload(torch.bfloat16)).dtype == torch.float32


def test_a_time_limit_ends_the_block_and_leaves_no_alarm():
    with pytest.raises(CompileTimeout, match="not compiled"), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)

from dataclasses import replace

import pytest
import torch
from contest import Contest, gradient_error, pair_rows, part
from peers import attention_by, loop_over_captions
from workloads import Workload, make_weights


def workload(**changes):
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(10, 3, 6, generator=generator), torch.randn(10, 5, 6, generator=generator)
    lengths = torch.tensor([2, 4, 1, 3, 2, 2, 3, 1, 5, 4])
    return replace(Workload("small", True, regions, words, lengths, make_weights(6, 4, seed=0)), **changes)


@pytest.fixture
def contest():
    """A contest of float32 workloads, without what only a measurement needs."""
    made = Contest.__new__(Contest)
    made.dtype = torch.float32
    return made


def test_what_is_held_against_float64_is_a_small_part():
    assert part(workload(), 8, 3).pair_count == 64
    assert part(workload(pairs=torch.zeros(9, 2, dtype=torch.int64)), 8, 3).pair_count == 3


def test_memory_is_counted_with_padding():
    assert pair_rows(workload()) == 100 * (3 + 5)


@pytest.mark.parametrize("scores", [attention_by("reference"), loop_over_captions])
def test_right_gradients_agree_in_the_part_and_in_its_batch(contest, scores):
    oracle = contest.oracle(workload())
    assert oracle.part.words.shape[1] < workload().words.shape[1]
    for batch in (oracle.part, workload()):
        assert gradient_error(scores, oracle, batch) < 1e-5


def test_wrong_gradients_do_not_agree(contest):
    oracle = contest.oracle(workload())

    def wrong(batch):
        return 1.001 * attention_by("reference")(batch)

    assert gradient_error(wrong, oracle, oracle.part) > 1e-5


def test_half_precision_is_held_against_the_reference_in_it(contest):
    contest.dtype = torch.bfloat16
    half = workload()
    weights = type(half.weights)(*(x.bfloat16() for x in half.weights))
    half = replace(half, regions=half.regions.bfloat16(), words=half.words.bfloat16(), weights=weights)
    oracle = contest.oracle(half)
    assert oracle.scores.dtype == torch.float64
    assert 1e-4 < oracle.tolerances["scores"] < 0.5
    assert gradient_error(attention_by("reference"), oracle, oracle.part) <= oracle.tolerances["gradients"]

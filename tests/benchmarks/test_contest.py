from dataclasses import replace

import pytest
import torch
from contest import Clock, Contest, first_line, gradient_error, pair_rows, part
from peers import COMPILED, LOOP, REFERENCE, attention_by, loop_over_captions
from workloads import GPU_SPECS, Workload, make_weights


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


@pytest.mark.parametrize(("seconds", "captions"), [(1e3, 10), (1e-9, 2)])
def test_on_a_gpu_ours_score_what_time_allows_and_peers_their_blocks(contest, seconds, captions):
    contest.device, contest.clock, contest.backends, contest.compiled = torch.device("cpu"), Clock(), ["reference"], None
    spec = GPU_SPECS["f30k-1k"]._replace(peer_block=(4, 2), loop_block=(10, 2))
    entrants = contest.enter(spec, workload(training=False), contest.clock.now() + seconds)
    shapes = {(e.name, e.shadow): e.workload.shape for e in entrants if not e.ours}
    assert shapes == {(LOOP, False): "10 x 2", (COMPILED, False): "4 x 2", (REFERENCE, False): "4 x 2"}
    assert next(e for e in entrants if e.ours).workload.shape == f"10 x {captions}"


def test_the_reason_of_a_failure_is_one_line():
    assert first_line(ValueError("\nfirst\nsecond")) == "first"
    assert first_line(ValueError()) == "ValueError"

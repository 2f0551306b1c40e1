from dataclasses import replace
from types import SimpleNamespace

import measuring
import pytest
import torch
from baselines import COMPILED, LOOP, REFERENCE, attention_by, loop_over_captions
from floor import Work, list_reading, pairs_work, projection_work
from measuring import (
    HALF_CHECKED,
    SHORT_FACTOR,
    TOLERANCES,
    Benchmark,
    Clock,
    Implementation,
    first_line,
    gradient_error,
    pair_rows,
    part,
    work_of,
)
from workloads import GPU_SPECS, Workload, cast_weights, make_weights

import caan_kernels as ck

LONG, SHORT = torch.tensor([9, 8, 10, 9, 8, 9, 12, 8, 9, 11]), torch.tensor([2, 4, 1, 3, 2, 2, 3, 1, 5, 4])


def workload(lengths=LONG, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    regions, words = torch.randn(10, 3, 6, generator=generator), torch.randn(10, int(lengths.max()), 6, generator=generator)
    return replace(Workload("small", True, regions, words, lengths, make_weights(6, 4, seed=0)), **changes)


@pytest.fixture
def benchmark():
    """A benchmark of float32 workloads, without what only a measurement needs."""
    made = Benchmark.__new__(Benchmark)
    made.dtype = torch.float32
    return made


def test_what_is_held_against_float64_is_a_small_part():
    assert part(workload(), 8, 3).pair_count == 64
    assert part(workload(pairs=torch.zeros(9, 2, dtype=torch.int64)), 8, 3).pair_count == 3


def test_memory_is_counted_with_padding():
    assert pair_rows(workload()) == 100 * (3 + 12)


@pytest.mark.parametrize("scores", [attention_by("reference"), loop_over_captions])
def test_right_gradients_agree_in_the_part_and_in_its_batch(benchmark, scores):
    lengths = LONG.flip(0).sort().values
    oracle = benchmark.oracle(workload(lengths))
    assert oracle.part.words.shape[1] < int(lengths.max())
    for batch in (oracle.part, workload(lengths)):
        assert gradient_error(scores, oracle, batch) < 1e-5


def test_wrong_gradients_do_not_agree(benchmark):
    oracle = benchmark.oracle(workload())

    def wrong(batch):
        return 1.001 * attention_by("reference")(batch)

    assert gradient_error(wrong, oracle, oracle.part) > 1e-5


def test_gradients_of_short_captions_may_err_as_the_reference_does(benchmark):
    assert benchmark.oracle(workload()).tolerances == TOLERANCES[torch.float32]
    oracle = benchmark.oracle(workload(SHORT))
    plain = gradient_error(attention_by("reference"), oracle, oracle.part)
    assert oracle.tolerances == {"scores": 2e-6, "gradients": max(1e-5, SHORT_FACTOR * plain)}


def jumping():
    """A workload whose image 1 has an alignment within rounding of 0 with caption 2, the largest of its region."""
    made = workload(
        torch.tensor([9, 8, 1, 9, 8, 9, 12, 8, 9, 11]), weights=make_weights(6, 4, seed=0)._replace(affinity=torch.eye(6))
    )
    made.words[2, 0] = torch.tensor([1.0, 0, 0, 0, 0, 0])
    made.regions[1, 2, 0] = 1e-8
    return made


def test_pairs_at_a_jump_are_left_out_and_counted(benchmark):
    oracle = benchmark.oracle(jumping())
    assert oracle.left_out.scores.nonzero().tolist() == [[1, 2]] == oracle.left_out.gradients.nonzero().tolist()
    assert oracle.upstream[1, 2] == 0
    found = oracle.scores.float()
    found[1, 2] += 0.1
    assert benchmark.score_errors(found, oracle)["scores"] < 1e-6
    found[1, 3] += 0.1
    assert benchmark.score_errors(found, oracle)["scores"] > 0.09


def test_counts_reach_the_row(benchmark, monkeypatch):
    benchmark.device, benchmark.clock = torch.device("cpu"), Clock()
    benchmark.memory = measuring.PeakMemory(benchmark.device)
    monkeypatch.setattr(Benchmark, "see_eager", lambda *anything: None)
    one = Implementation(REFERENCE, attention_by("reference"), jumping())
    assert benchmark.first_run(one, benchmark.oracle(one.workload), end=0)
    one.seconds.append(one.expected)
    row = benchmark.row(one)
    assert row.left_out == {"scores": 1, "gradients": 1}
    assert row.agrees


def half_workload():
    whole = workload(training=True)
    return replace(
        whole, regions=whole.regions.bfloat16(), words=whole.words.bfloat16(), weights=cast_weights(whole.weights, torch.bfloat16)
    )


def test_half_precision_is_held_against_the_reference_in_it(benchmark):
    benchmark.dtype = torch.bfloat16
    half = half_workload()
    oracle = benchmark.oracle(half)
    assert oracle.scores.dtype == torch.float64
    assert oracle.part.pair_count == min(HALF_CHECKED[0], 10) ** 2
    assert not oracle.left_out.scores.any()
    assert oracle.tolerances.keys() == {"rms", "p99", "gradients"}
    assert 1e-4 < oracle.tolerances["rms"] < oracle.tolerances["p99"] < 0.5
    with torch.no_grad():
        errors = benchmark.score_errors(attention_by("reference")(half), oracle)
    assert all(error == pytest.approx(oracle.tolerances[name] / 2) for name, error in errors.items())
    assert gradient_error(attention_by("reference"), oracle, oracle.part) <= oracle.tolerances["gradients"]


def test_runs_of_a_list_alone_begin_with_empty_caches(benchmark):
    emptied = []
    benchmark.device = torch.device("cpu")
    benchmark.probe = SimpleNamespace(empty_caches=lambda: emptied.append(1))
    benchmark.timed(lambda: None, workload(), 0)
    assert not emptied
    benchmark.timed(lambda: None, workload(pairs=torch.zeros(1, 2, dtype=torch.int64)), 0)
    assert emptied


def test_the_work_of_a_run():
    regions, words = [3] * 10, LONG.tolist()
    all_pairs, projections = pairs_work(regions, words, None, 6, 4), projection_work(30, sum(words), 6, 4)
    assert work_of(workload(training=False), []) == all_pairs.plus(projections)
    some = [(0, 1), (2, 3)]
    backward = Work(2 * pairs_work(regions, words, some, 6, 4).flops, 0)
    assert work_of(workload(), some) == all_pairs.plus(projections.times(3)).plus(backward)
    plain = workload(training=False, pairs=torch.tensor(some))
    listed = replace(plain, gallery=ck.project_regions(plain.regions, plain.weights))
    expected = pairs_work(regions, words, some, 6, 4).plus(projection_work(0, sum(words), 6, 4))
    assert work_of(listed, []) == expected.plus(list_reading(regions, words, some, 6, 4, 4))


@pytest.mark.parametrize(("seconds", "captions"), [(1e3, 10), (1e-9, 2)])
def test_on_a_gpu_ours_score_what_time_allows_and_baselines_their_blocks(benchmark, seconds, captions):
    benchmark.device, benchmark.clock, benchmark.backends, benchmark.compiled = torch.device("cpu"), Clock(), ["reference"], None
    spec = GPU_SPECS["f30k-1k"]._replace(baseline_block=(4, 2), loop_block=(10, 2))
    found = benchmark.implementations(spec, workload(training=False), benchmark.clock.now() + seconds)
    shapes = {(e.name, e.shadow): e.workload.shape for e in found if not e.ours}
    assert shapes == {(LOOP, False): "10 x 2", (COMPILED, False): "4 x 2", (REFERENCE, False): "4 x 2"}
    assert next(e for e in found if e.ours).workload.shape == f"10 x {captions}"


def test_what_the_reference_holds_is_learned_for_each_hidden_width(benchmark):
    benchmark.eager = {}
    wide, narrow = workload(), workload(weights=make_weights(6, 2, seed=0))
    benchmark.see_eager(wide, 3000)
    benchmark.see_eager(narrow.block(5, 5), 750)
    benchmark.see_eager(wide.block(5, 5), 1)
    assert benchmark.eager == {4: (1500, 2.0), 2: (pair_rows(narrow.block(5, 5)), 750 / pair_rows(narrow.block(5, 5)))}


def test_the_reason_of_a_failure_is_one_line():
    assert first_line(ValueError("\nfirst\nsecond")) == "first"
    assert first_line(ValueError()) == "ValueError"

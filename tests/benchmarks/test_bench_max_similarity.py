"""The benchmark of MaxSim: implementations agree, work is counted by hand, and a row that disagrees has no ratio."""

import bench_max_similarity as bench
import pytest
import torch
from bench_max_similarity import Row, Workload
from floor import Work


def small(pairs=None, training=False):
    regions = bench.unit_rows(6, 9, 16, seed=0)
    words, lengths = bench.ragged(bench.unit_rows(6, 5, 16, seed=1), 2)
    return Workload("small", regions, words, lengths, pairs, training)


@pytest.mark.parametrize("pairs", [None, torch.tensor([[0, 1], [3, 2], [5, 1]])], ids=["all_pairs", "pair_list"])
def test_implementations_agree(pairs, monkeypatch):
    monkeypatch.setattr(bench, "BLOCK_BYTES", 4 * 6 * 9 * 5 * 2)
    w = small(pairs)
    torch.testing.assert_close(bench.run(bench.in_blocks(bench.dense), w), bench.run(bench.ours, w))


def test_training_steps_agree():
    w = small(training=True)
    for found, expected in zip(*(bench.gradients(x, w) for x in (bench.ours, bench.in_blocks(bench.dense))), strict=True):
        torch.testing.assert_close(found, expected)


def test_work():
    w = small()
    words = int(w.lengths.sum())
    assert w.work() == Work(2 * 6 * words * 9 * 16, 0.0, 4 * 16 * (6 * 9 + words))
    pairs = torch.tensor([[0, 1], [3, 1], [0, 1]])
    assert small(pairs).work() == Work(2 * 3 * int(w.lengths[1]) * 9 * 16, 0.0, 4 * 16 * (2 * 9 + int(w.lengths[1])))
    with_gradient = torch.zeros(6, 6, dtype=torch.bool)
    with_gradient[2, 1] = True
    step = w.work(with_gradient)
    assert step.flops == w.work().flops + 4 * 16 * int(w.lengths[1]) and step.bytes == 2 * w.work().bytes


def test_no_ratio_while_results_disagree():
    rows = [
        Row("small", by, "6 x 6", 36, error, 1.0, None, Work(1e9, 0.0), [1.0, 3.0]) for by, error in (("cpu", 0.1), ("einsum", 2.0))
    ]
    assert "disagrees" in bench.table(rows)


def test_blocks_of_one_shape():
    assert [bench.even(12, most) for most in (0, 1, 5, 6, 100)] == [1, 1, 4, 6, 12]

from types import SimpleNamespace

import pytest
import torch
from floor import (
    OWN_SIZES,
    Probe,
    Rates,
    Work,
    own_products,
    pair_work,
    pairs_work,
    projection_work,
    strict_pair_work,
    training_work,
)


def test_the_floor_of_the_papers_sizes_is_the_designs():
    work = pair_work(36, 12.5, 1024, 1024)
    assert work.flops == pytest.approx(5.5e6, rel=0.01)
    assert work.tanh == pytest.approx(50e3, rel=0.01)


def test_the_strict_count_by_hand():
    # S = 2mnD; four products of m x n with width H, two flops each; pooling 2mD and 2nD.
    assert strict_pair_work(3, 2, 10, 100) == Work(120 + 4 * 2 * 3 * 2 * 100 + 60 + 40, 500)


def test_all_pairs_are_summed_over_real_lengths():
    regions, words = [3, 4], [2, 5, 5]
    total = pairs_work(regions, words, None, 8, 16)
    each = [pair_work(m, n, 8, 16) for m in regions for n in words]
    assert total == Work(sum(w.flops for w in each), sum(w.tanh for w in each))


def test_a_pair_list_counts_repeats():
    once = pairs_work([3], [2, 7], [(0, 1)], 8, 16)
    assert pairs_work([3], [2, 7], [(0, 1), (0, 1)], 8, 16) == once.times(2)


def test_projections_by_hand():
    # A region: two products D x H. A word: one D x D, two D x H.
    assert projection_work(1, 0, 8, 16).flops == 2 * 2 * 8 * 16
    assert projection_work(0, 1, 8, 16).flops == 2 * 8 * 8 + 2 * 2 * 8 * 16


def test_a_step_is_forward_plus_backward_of_what_has_a_gradient():
    assert training_work(Work(100, 10), Work(7, 0), Work(20, 3)) == Work(100 + 21 + 40, 10)


def test_seconds_add_up_or_overlap():
    work = Work(100, 30)
    assert Rates(50, 10).seconds(work) == pytest.approx(5)
    assert Rates(50, 10, overlap=True).seconds(work) == pytest.approx(3)


def test_the_probe_finds_rates_and_keeps_the_best():
    probe = Probe(torch.device("cpu"), torch.bfloat16)
    sample = probe.sample()
    assert 0 < sample.flops <= probe.best.flops
    assert 0 < sample.tanh <= probe.best.tanh
    assert probe.matrix_name in ("torch.mm", "caan_kernels.project_regions")
    assert not sample.overlap


def test_the_flops_of_our_products_are_counted():
    # Two projections of 36 regions from 1,024 to 1,024: two flops to a multiply-add.
    assert [product.flops for product in own_products()] == [2 * 2 * 36 * size * 1024 * 1024 for size in OWN_SIZES]


@pytest.mark.parametrize(("told", "name"), [({"clock_rate": 1_500_000}, "at 1500 MHz"), ({}, "at 1980 MHz, assumed")])
def test_the_tanh_rate_of_a_gpu_is_computed(monkeypatch, told, name):
    properties = SimpleNamespace(multi_processor_count=100, **told)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    probe = Probe.__new__(Probe)
    probe.device = torch.device("cuda")
    found, rate = probe.fastest_tanh()
    assert found == f"computed: 16 a clock and multiprocessor {name}"
    assert rate() == 16 * 100 * told.get("clock_rate", 1_980_000) * 1e3

from types import SimpleNamespace

import pytest
import torch
from floor import (
    OWN_SIZES,
    Probe,
    Rates,
    Work,
    context_flops,
    list_reading,
    own_products,
    pair_work,
    pairs_work,
    projection_work,
    training_work,
)


@pytest.mark.parametrize(
    ("hidden", "flops"),
    [
        # Regions 6 * 36 * 12.5 * H; words 2 * 12.5² * 36 + 2 * 12.5 * 48.5 * H; 2 * 36 * 12.5 * 1024; 2 * 48.5 * 1024.
        (1024, 2_764_800 + (11_250 + 1_241_600) + 921_600 + 99_328),
        (64, 172_800 + (11_250 + 77_600) + 921_600 + 99_328),
    ],
)
def test_a_usual_pair_by_hand(hidden, flops):
    assert pair_work(36, 12.5, 1024, hidden) == Work(flops, 48.5 * hidden)


def test_the_usual_pair_is_the_designs():
    assert pair_work(36, 12.5, 1024, 1024).flops == pytest.approx(5.0e6, rel=0.01)
    assert pair_work(36, 12.5, 1024, 1024).tanh == pytest.approx(50e3, rel=0.01)


def test_each_side_takes_the_smaller_of_two_forms():
    # 6 * 3 * 2 * 10 = 360 of three products; Gram: 2 * 9 * 2 + 2 * 3 * 5 * 10 = 336.
    assert context_flops(3, 2, 10) == 336
    # 6 * 6 * 2 * 10 = 720; Gram: 2 * 36 * 2 + 2 * 6 * 8 * 10 = 1104.
    assert context_flops(6, 2, 10) == 720
    # The region side 720; the word side, Gram: 2 * 4 * 6 + 2 * 2 * 8 * 10 = 368. 2 * 6 * 2 * 5 = 120; 2 * 8 * 5 = 80.
    assert pair_work(6, 2, 5, 10) == Work(720 + 368 + 120 + 80, 80)


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


def test_a_list_reads_each_image_that_it_names_once():
    matrices = 4 * (8 * 8 + 2 * 8 * 16)
    # An image of 3 regions: V, V Q1 and V Q4; a caption of 2 words.
    image, caption = 4 * 3 * (8 + 2 * 16), 4 * 2 * 8
    named = [(0, 0), (1, 0), (1, 0)]
    assert list_reading([3, 3, 3], [2, 9], named, 8, 16, 4) == Work(0, 0, matrices + 2 * image + caption)
    # An image of the paper's sizes.
    more, less = (list_reading([36] * 2, [1], pairs, 1024, 1024, 4).bytes for pairs in ([(0, 0), (1, 0)], [(0, 0)]))
    assert more - less == 442_368


def test_seconds_add_up_or_overlap():
    work = Work(100, 30, 400)
    assert Rates(50, 10, 1000).seconds(work) == pytest.approx(5)
    assert Rates(50, 10, 1000, overlap=True).seconds(work) == pytest.approx(3)
    # Reading runs beside all else.
    assert Rates(50, 10, 40).seconds(work) == pytest.approx(10)


def test_the_faster_of_two_rates_is_taken_one_by_one():
    assert Rates(5, 10, 1, overlap=True).faster(Rates(7, 3, 2)) == Rates(7, 10, 2, overlap=True)


def test_the_probe_finds_rates_and_keeps_the_best():
    probe = Probe(torch.device("cpu"), torch.bfloat16)
    sample = probe.sample()
    for rate, best in zip(sample[:3], probe.best[:3], strict=True):
        assert 0 < rate <= best
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
    found, rate, first = probe.fastest_tanh()
    assert found == f"computed: 16 a clock and multiprocessor {name}"
    assert rate() == first == 16 * 100 * told.get("clock_rate", 1_980_000) * 1e3

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import workloads
from workloads import CAPTION_LENGTHS, GPU_SPECS, SPECS, RandomSource, ScanSource


def mean_length(table):
    return sum(length * captions for length, captions in table.items()) / sum(table.values())


@pytest.mark.parametrize(
    ("name", "captions", "mean", "longest", "digest"),
    [("f30k", 5000, 15.54, 77, "6c069aa9a7a506a9"), ("coco", 25000, 13.277, 52, "a05600afecbd3dd4")],
)
def test_the_tables_are_those_of_the_real_captions(name, captions, mean, longest, digest):
    table = CAPTION_LENGTHS[name]
    assert sum(table.values()) == captions
    assert mean_length(table) == pytest.approx(mean, abs=5e-3)
    assert max(table) == longest
    # Two marks and at least one token.
    assert min(table) >= 3
    # Estimates rest on every number.
    assert hashlib.sha256(str(sorted(table.items())).encode()).hexdigest()[:16] == digest


def test_lengths_are_drawn_from_the_table_and_repeat():
    table = CAPTION_LENGTHS["coco"]
    drawn = workloads.sample_lengths(table, 20000, seed=3)
    assert torch.equal(drawn, workloads.sample_lengths(table, 20000, seed=3))
    assert set(drawn.tolist()) <= set(table)
    assert drawn.double().mean().item() == pytest.approx(mean_length(table), abs=0.1)


def test_random_features_have_unit_rows_and_zero_padding():
    regions, words, lengths = RandomSource(CAPTION_LENGTHS["f30k"]).load(2, 5, 5)
    assert regions.shape == (2, workloads.REGIONS, workloads.WIDTH)
    assert words.shape[1] == lengths.max()
    torch.testing.assert_close(regions.norm(dim=-1), torch.ones(2, workloads.REGIONS))
    exists = torch.arange(words.shape[1]) < lengths[:, None]
    torch.testing.assert_close(words.norm(dim=-1), exists.float())


def small_workload(pairs=None):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([2, 5, 3])
    words = torch.randn(3, 5, 4, generator=generator)
    regions = torch.randn(6, 3, 4, generator=generator)
    return workloads.Workload("small", False, regions, words, lengths, workloads.make_weights(4, 2, seed=0), pairs)


@pytest.mark.parametrize(("training", "longest"), [(True, 2), (False, 5)])
def test_padding_of_a_block(training, longest):
    block = replace(small_workload(), training=training).block(2, 1)
    assert (block.regions.shape, block.words.shape, block.pair_count) == ((2, 3, 4), (1, longest, 4), 2)


def test_first_pairs_keep_only_the_items_they_name():
    whole = small_workload(torch.tensor([[5, 2], [1, 2], [5, 0], [0, 1]]))
    part = whole.first_pairs(3)
    assert part.pair_count == 3
    assert part.regions.shape[0] == 2
    for (i, t), (whole_i, whole_t) in zip(part.pairs.tolist(), whole.pairs[:3].tolist(), strict=True):
        assert torch.equal(part.regions[i], whole.regions[whole_i])
        assert torch.equal(part.words[t], whole.words[whole_t])
        assert part.word_lengths[t] == whole.word_lengths[whole_t]


def test_first_pairs_of_all_pairs_is_an_error():
    with pytest.raises(ValueError, match="first_pairs"):
        small_workload().first_pairs(2)


def test_hardest_negatives_against_a_plain_loop():
    scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = 0.0
    for i in range(7):
        others = [j for j in range(7) if j != i]
        expected += max(0.0, max(0.2 + scores[i, j] - scores[i, i] for j in others))
        expected += max(0.0, max(0.2 + scores[j, i] - scores[i, i] for j in others))
    assert workloads.hardest_negative_loss(scores).item() == pytest.approx(float(expected))


def test_the_gradient_of_the_loss_is_sparse():
    scores = torch.rand(9, 9, generator=torch.Generator().manual_seed(2))
    gradient = workloads.loss_gradient(scores)
    assert gradient.count_nonzero() <= 3 * 9
    assert gradient.sum().item() == pytest.approx(0.0, abs=1e-6)
    apart = 10 * torch.eye(9)
    assert workloads.loss_gradient(apart).count_nonzero() == 0


def test_every_spec_names_its_table():
    for name, spec in SPECS.items():
        assert spec.name == name
        assert spec.lengths in CAPTION_LENGTHS
        assert (spec.candidates > 0) == (spec.kind == "pair list")


def test_a_gpu_has_the_same_workloads_at_the_size_of_the_test_sets():
    assert list(GPU_SPECS)[: len(SPECS)] == list(SPECS)
    assert all(GPU_SPECS[name].kind == spec.kind and GPU_SPECS[name].lengths == spec.lengths for name, spec in SPECS.items())
    assert [GPU_SPECS[name][4:6] for name in ("f30k-1k", "coco-5k")] == [(1000, 5000), (5000, 25000)]


def test_a_gpu_also_has_patches():
    for name, shape in {"patches-196x32": (196, 32), "patches-576x64": (576, 64)}.items():
        spec = GPU_SPECS[name]._replace(images=2, captions=3, hidden=8)
        source = RandomSource(workloads.LENGTHS[spec.lengths], spec.regions)
        built = workloads.build(spec, source, torch.float32, torch.device("cpu"))
        assert (built.regions.shape[1], built.words.shape[1]) == shape and set(built.word_lengths.tolist()) == {shape[1]}


def test_narrow_workloads_are_the_wide_ones_with_another_hidden_width():
    for name in ("coco-5k", "train-128"):
        for specs in (SPECS, GPU_SPECS):
            wide, narrow = specs[name], specs[f"{name}-h64"]
            assert narrow._replace(name=name, title=wide.title, seconds=wide.seconds, hidden=1024) == wide
            assert narrow.hidden == 64
    built = workloads.build(
        SPECS["coco-5k-h64"]._replace(images=2, captions=3),
        RandomSource(CAPTION_LENGTHS["coco"]),
        torch.float64,
        torch.device("cpu"),
    )
    assert built.weights.region_intra.shape == (1024, 64)
    assert built.weights.region_score.dtype == torch.float64


def write_split(folder, split, images, captions):
    rng = np.random.default_rng(0)
    np.save(folder / f"{split}_ims.npy", rng.standard_normal((images, 4, 6)).astype(np.float16))
    (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


def test_scan_layout_with_five_captions_an_image(tmp_path):
    write_split(tmp_path, "dev", 3, [f"caption {k} of image {k // 5}" for k in range(15)])
    source = ScanSource(tmp_path)
    regions, words, lengths = source.load(3, 3, 1)
    assert (regions.shape, words.shape) == ((3, 4, workloads.WIDTH), (3, 7, workloads.WIDTH))
    assert lengths.tolist() == [7, 7, 7]
    torch.testing.assert_close(regions.norm(dim=-1), torch.ones(3, 4))
    # Rows: start, caption, number, of, image, image's number, end. A token is the same vector wherever it stands.
    assert torch.equal(words[0, 1], words[2, 1])
    assert torch.equal(words[1, 2], source.embed("5"))
    _, words, _ = source.load(2, 10, 5)
    assert torch.equal(words[7, 2], source.embed("7"))


def test_scan_layout_with_one_row_a_caption(tmp_path):
    write_split(tmp_path, "test", 6, [f"line {k}" for k in range(6)])
    _, words, lengths = ScanSource(tmp_path).load(4, 4, 5)
    assert lengths.tolist() == [4] * 4
    assert torch.equal(words[3, 2], ScanSource(tmp_path).embed("3"))


def test_no_more_is_scored_than_a_split_holds(tmp_path):
    write_split(tmp_path, "test", 3, ["a"] * 15)
    spec = ScanSource(tmp_path).within(GPU_SPECS["coco-5k"])
    assert (spec.images, spec.captions) == (3, 15)
    assert ScanSource(tmp_path).within(spec._replace(images=2, captions=4))[4:6] == (2, 4)


def test_the_test_split_comes_before_the_others(tmp_path):
    write_split(tmp_path, "train", 1, ["a"])
    write_split(tmp_path, "test", 1, ["b"])
    assert ScanSource(tmp_path).name.endswith("split test")


def test_scan_layout_errors_name_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"_ims\.npy"):
        ScanSource(tmp_path)
    write_split(tmp_path, "dev", 3, ["a"] * 7)
    with pytest.raises(ValueError, match=r"expected 3 .* or 15 .* got 7"):
        ScanSource(tmp_path)
    write_split(tmp_path, "dev", 3, ["a"] * 15)
    with pytest.raises(ValueError, match="needs 4 images, the split holds 3"):
        ScanSource(tmp_path).load(4, 4, 1)
    with pytest.raises(ValueError, match="needs 16 captions, the split offers 15"):
        ScanSource(tmp_path).load(3, 16, 5)

"""Evaluation: figures of the whole matrix, from tiles, however they are cut."""

import errno
import json
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from ablation import TABLE_4
from models import make_model, whole_matrix
from ranks import count_ranks
from runs import CONFIG, trainer

from caan import checkpoint, errors, evaluation, kept, published, scorer
from caan.commands import main
from caan.data import load_karpathy_split, load_scan_split
from caan.evaluation import evaluate
from caan.published import caption_digest
from caan.recall import folds


def assert_same_figures(found, scores, split, fold=None):
    expected = count_ranks(scores, torch.from_numpy(split.image_of_caption), fold).figures()
    assert found == expected


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("ensemble", [1, 2])
def test_figures_and_scores_are_those_of_the_whole_matrix(split, tmp_path, monkeypatch, workers, ensemble):
    # Blocks of 5 images in chunks of 5, batches of 7 captions: everything is cut.
    monkeypatch.setattr(scorer, "_TILE", (5, 7))
    monkeypatch.setattr(scorer, "_BLOCK_BYTES", 1)
    models = [make_model(split, seed, width=16 - 4 * seed) for seed in range(ensemble)]
    path = tmp_path / "scores.npy"
    found = evaluate(models, split, save_scores=path, workers=workers, fold_size=8)
    scores = torch.from_numpy(np.load(path))
    torch.testing.assert_close(scores, whole_matrix(models, split), atol=2e-6, rtol=0)
    assert_same_figures(found.figures, scores, split)
    assert_same_figures(found.fold_figures, scores, split, folds(24, 8))
    assert found.pairs == 24 * 120 and found.seconds > 0
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("row", TABLE_4)
def test_every_row_of_table_4(split, tmp_path, monkeypatch, row):
    for name in ("_TILE", "_SMALL_TILE"):
        monkeypatch.setattr(scorer, name, (5, 7))
    monkeypatch.setattr(scorer, "_BLOCK_BYTES", 1)
    model = make_model(split, 0, **TABLE_4[row])
    path = tmp_path / "scores.npy"
    found = evaluate([model], split, save_scores=path, fold_size=8)
    scores = torch.from_numpy(np.load(path))
    torch.testing.assert_close(scores, whole_matrix([model], split), atol=2e-6, rtol=0)
    assert_same_figures(found.figures, scores, split)
    assert_same_figures(found.fold_figures, scores, split, folds(24, 8))


def test_a_dense_model_is_scored_in_small_tiles(split, tmp_path, monkeypatch):
    """Alone, and beside another one; a right answer's score is, bit for bit, that in its tile."""
    monkeypatch.setattr(scorer, "_SMALL_TILE", (5, 7))
    dense, other = make_model(split, 0, intra="features"), make_model(split, 1)
    shapes, positives = [], []

    class Counter(evaluation.RankCounter):
        def __init__(self, own, *arguments):
            positives.append(own)
            super().__init__(own, *arguments)

    monkeypatch.setattr(evaluation, "RankCounter", Counter)
    for model, _ in (dense, other):

        def score(regions, words, pairs=None, attention=model.attention.forward):
            shapes.append((len(regions.features), len(words.features), pairs))
            return attention(regions, words, pairs)

        monkeypatch.setattr(model.attention, "forward", score)
    for models, room in (([dense], 1 << 20), ([dense, other], 1 << 20), ([dense], 0), ([dense], 500)):
        shapes.clear()
        monkeypatch.setattr(scorer, "_TILES_BYTES", room)
        evaluate(models, split, save_scores=tmp_path / "scores.npy")
        assert shapes and all(i <= 5 and t <= 7 and pairs is None for i, t, pairs in shapes)
        scored = sum(i * t for i, t, _ in shapes)
        assert (scored == len(models) * 24 * 120) == (room == 1 << 20)
        scores = np.load(tmp_path / "scores.npy")
        assert (positives[-1].numpy() == scores[split.image_of_caption, np.arange(120)]).all()


def test_folds_alone_score_only_their_own_pairs(split, monkeypatch):
    model = make_model(split, 0)
    both = evaluate([model], split, fold_size=8)
    scored = []
    count = evaluation.RankCounter.add

    def add(self, scores, images, captions):
        scored.append(scores.numel())
        count(self, scores, images, captions)

    monkeypatch.setattr(evaluation.RankCounter, "add", add)
    alone = evaluate([model], split, fold_size=8, folds_only=True)
    assert alone.figures is None and alone.fold_figures == both.fold_figures
    assert sum(scored) == alone.pairs == 24 * 120 / 3


def test_an_image_without_regions(split, tmp_path):
    np.save(tmp_path / "test_num_boxes.npy", np.where(np.arange(24) == 3, 0, 5))
    model = make_model(split, 0)
    path = tmp_path / "scores.npy"
    found = evaluate([model], load_scan_split(tmp_path, "test"), save_scores=path)
    scores = np.load(path)
    assert (scores[3] == 0).all()
    # All of its captions tie with each other only; they score 0 with their image as any other caption does.
    assert found.figures.image_to_text.tied_queries >= 1


def test_a_fold_without_captions(tmp_path, features, karpathy_file):
    content = json.loads(karpathy_file.read_text())
    for image in content["images"]:
        image["split"] = "test"
    for image in content["images"][-2:]:
        image["sentences"] = []
    karpathy_file.write_text(json.dumps(content))
    np.save(tmp_path / "test_ims.npy", features[:6])
    split = load_karpathy_split(karpathy_file, tmp_path / "test_ims.npy", "test")
    model = make_model(split, 0)
    whole, alone = (evaluate([model], split, fold_size=2, folds_only=only) for only in (False, True))
    assert alone.fold_figures == whole.fold_figures and alone.pairs == 2 * (5 + 5) + 2 * (6 + 5)


def test_only_one_block_of_images_is_held(split, monkeypatch):
    # Two blocks, of 15 and of 9 images: three chunks and two.
    monkeypatch.setattr(scorer, "_TILE", (5, 7))
    monkeypatch.setattr(scorer, "_BLOCK_BYTES", 15 * 5 * 4 * 3 * 16)
    model, vocabulary = make_model(split, 0)
    alive, most = weakref.WeakSet(), 0

    class Prepared:
        def __init__(self, prepared):
            self.prepared = prepared
            alive.add(self)

    def prepare(batch, prepare=model.prepare_images):
        nonlocal most
        result = Prepared(prepare(batch))
        most = max(most, len(alive))
        return result

    def score(regions, words, pairs=None, attention=model.attention.forward):
        return attention(regions.prepared, words, pairs)

    monkeypatch.setattr(model, "prepare_images", prepare)
    monkeypatch.setattr(model.attention, "forward", score)
    evaluate([(model, vocabulary)], split)
    assert most == 3


def test_a_model_of_another_width_is_refused(split, tmp_path, write_split):
    model = make_model(split, 0)
    write_split(tmp_path, "wide", np.zeros((24, 5, 7), dtype=np.float32), split.captions)
    message = r"wide_ims.npy: expected region features of width 6, the model's, found 7 .*; give a --data with"
    with pytest.raises(errors.WidthError, match=message):
        evaluate([model], load_scan_split(tmp_path, "wide"))


def test_arguments_that_contradict(split, tmp_path):
    model = make_model(split, 0)
    with pytest.raises(ValueError, match="models: expected at least one, got none"):
        evaluate([], split)
    with pytest.raises(ValueError, match="folds_only: expected a fold_size"):
        evaluate([model], split, folds_only=True)
    with pytest.raises(ValueError, match="save_scores: expected all pairs"):
        evaluate([model], split, fold_size=8, folds_only=True, save_scores=tmp_path / "x.npy")
    with pytest.raises(ValueError, match="size: expected a divisor of 24 images, got 7"):
        evaluate([model], split, fold_size=7)
    assert not (tmp_path / "x.npy").exists()


def test_a_run_that_fails_leaves_no_scores(split, tmp_path, monkeypatch):
    def add(*arguments):
        raise MemoryError

    monkeypatch.setattr(evaluation.RankCounter, "add", add)
    with pytest.raises(MemoryError):
        evaluate([make_model(split, 0)], split, save_scores=tmp_path / "scores.npy")
    assert not list(tmp_path.glob("scores*"))


def test_two_evaluations_do_not_write_one_file(split, tmp_path, monkeypatch):
    model, refused = make_model(split, 0), []
    add = evaluation.RankCounter.add

    def and_another(*arguments):
        monkeypatch.setattr(evaluation.RankCounter, "add", add)
        with pytest.raises(BlockingIOError, match="save_scores: expected a file that no other evaluation is writing, found"):
            evaluate([model], split, save_scores=tmp_path / "scores.npy", keep=tmp_path)
        refused.append(True)
        add(*arguments)

    monkeypatch.setattr(evaluation.RankCounter, "add", and_another)
    found = evaluate([model], split, save_scores=tmp_path / "scores.npy", keep=tmp_path)
    assert refused and found.scored == found.pairs
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "scores.npy")), whole_matrix([model], split), atol=2e-6, rtol=0)


def test_whole_scores_outlive_figures_that_nobody_got(split, tmp_path, monkeypatch):
    """Between the last score and the safe figures a try may be stopped, too."""
    monkeypatch.setattr(kept, "_SAVE_SECONDS", 0)
    model, path = make_model(split, 0), tmp_path / "scores.npy"
    first = evaluate([model], split, save_scores=path, keep=tmp_path)
    before = path.stat()
    again = evaluate([model], split, save_scores=path, keep=tmp_path)
    assert (again.scored, again.pairs, again.figures) == (0, first.pairs, first.figures)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    # Another file in its place is not those scores.
    np.save(path, np.zeros((24, 120), np.float32))
    anew = evaluate([model], split, save_scores=path, keep=tmp_path)
    assert anew.scored == anew.pairs and np.load(path).any()
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.fixture
def run_folder(split, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoint.save_model(folder / "best.safetensors", *make_model(split, 0))
    return folder


def test_command(split, run_folder, tmp_path, capsys, monkeypatch):
    from caan.commands import evaluate as command

    monkeypatch.setattr(command, "_FOLD_SIZE", 8)
    monkeypatch.setitem(published.TESTS, "coco5k", published.PublishedTest("COCO", 24, False, (caption_digest(split.captions[7]),)))
    options = ["--data", str(tmp_path), "--protocol", "both", "--baseline", "coco5k"]
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(run_folder), str(run_folder), *options, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    model = make_model(split, 0)
    scores = whole_matrix([model], split)
    figures = count_ranks(scores, torch.from_numpy(split.image_of_caption)).figures()
    [line] = [line for line in printed.splitlines() if line.startswith("24 images, 120 captions")]
    numbers = line.removeprefix("24 images, 120 captions").split()
    side = figures.image_to_text
    assert numbers[:4] == [*(f"{value:.1f}" for value in (side.r1, side.r5, side.r10)), f"{side.median_rank:g}"]
    assert numbers[-1] == f"{figures.rsum:.1f}" and len(numbers) == 11
    assert "24 images, mean of folds of 8" in printed and "2,880 pairs in" in printed
    assert "CAAN, COCO 5K" in printed and "421.1" in printed and "SCAN*, COCO 5K" in printed and "Awesome_Matching" in printed
    found = json.loads(out.read_text())
    assert found["figures"]["image_to_text"]["r1"] == side.r1 and found["pairs"] == 2880 and len(found["runs"]) == 2
    assert found["figures"]["rsum"] == figures.rsum and found["fold_figures"]["rsum"] > 0
    assert (found["split"], found["protocol"], found["data"]) == ("test", "both", str(tmp_path))
    counts = [found[name] for name in ("limit", "images", "split_images", "captions", "fold_size")]
    assert counts == [None, 24, 24, 120, 8]


def test_a_part_of_a_split_is_called_so(run_folder, tmp_path, capsys):
    out = tmp_path / "figures.json"
    command = ["evaluate", str(run_folder), "--data", str(tmp_path), "--limit", "20", "--json", str(out)]
    assert main(command) == 0
    assert "\nfirst 20 of 24 images, 100 captions " in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [found[name] for name in ("split", "limit", "images", "split_images", "captions")] == ["test", 20, 20, 24, 100]
    before = out.read_text()
    assert main(command) == 1
    assert "--json: expected a file that is not there yet" in capsys.readouterr().err and out.read_text() == before
    assert main([*command, "--force"]) == 0


def test_published_rows_stand_beside_the_same_test_only(run_folder, split, tmp_path, capsys, monkeypatch):
    def error(*arguments):
        assert main(["evaluate", str(run_folder), "--data", str(tmp_path), *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    expected = "--baseline f30k: expected the 1,000 images of the test of Flickr30K, found 24; published figures are printed beside"
    assert expected in error("--baseline", "f30k")
    test = published.PublishedTest("COCO", 24, True, (caption_digest(split.captions[7].upper() + " ."),))
    monkeypatch.setitem(published.TESTS, "coco1k", test)
    assert "--baseline coco1k: expected --protocol folds or both beside it, got full" in error("--baseline", "coco1k")
    assert "expected the 24 images of the test of COCO, found 20" in error("--baseline", "coco1k", "--limit", "20")
    monkeypatch.setitem(published.TESTS, "coco1k", published.PublishedTest("COCO", 24, False, (caption_digest("no such"),)))
    assert "--baseline coco1k: expected the captions of the test of COCO, found others" in error("--baseline", "coco1k")


def test_figures_of_chance_are_called_so(world, tmp_path, capsys, monkeypatch):
    from caan.commands import evaluate as command

    run = trainer(world, tmp_path / "run", replace(CONFIG, epochs=12, decay_epochs=(8.0,)), {"region_drop": 0.0, "word_drop": 0.0})
    run.run()
    evaluate_it = ["evaluate", str(tmp_path / "run"), "--data", str(world), "--split", "dev"]
    assert main(evaluate_it) == 0
    assert "Warning" not in capsys.readouterr().out
    features = np.load(world / "dev_ims.npy")
    other = np.random.default_rng(0).standard_normal(features.shape).astype(np.float32)
    np.save(world / "dev_ims.npy", other)
    out = tmp_path / "figures.json"
    assert main([*evaluate_it, "--json", str(out)]) == 0
    warning = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"Warning: random scores can have rsum [\d.]+\. The vocabulary knows 100% of the captions' words", warning)
    assert json.loads(out.read_text())["warning"] == warning
    monkeypatch.setattr(command, "_FOLD_SIZE", 18)
    assert main([*evaluate_it, "--protocol", "folds"]) == 0
    printed = capsys.readouterr().out
    assert "\nby chance, in a fold  " in printed and "Warning: random scores" in printed


def test_figures_that_cannot_be_written_cost_no_scores(run_folder, tmp_path, capsys, monkeypatch):
    from caan.commands import evaluate as command

    monkeypatch.setattr(kept, "_SAVE_SECONDS", 0)
    evaluate_it = ["evaluate", str(run_folder), "--data", str(tmp_path), "--json", str(tmp_path / "figures.json")]

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "figures.json")

    with monkeypatch.context() as patch:
        patch.setattr(command, "replacing", full)
        assert main(evaluate_it) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(evaluate_it) == 0
    assert "2,880 pairs, 0 of them in" in capsys.readouterr().out and not list(run_folder.glob("evaluation-*"))


def test_command_names_what_is_wrong(run_folder, tmp_path, capsys):
    def error(*arguments):
        assert main(["evaluate", *map(str, arguments)]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("caan evaluate: error: ") and captured.err.count("\n") == 1
        return captured.err

    assert "best.safetensors: expected a checkpoint, found no such file" in error(tmp_path, "--data", tmp_path)
    assert "dev_ims.npy: expected a file of the SCAN layout" in error(run_folder, "--data", tmp_path, "--split", "dev")
    assert "limit: expected 1 to 24" in error(run_folder, "--data", tmp_path, "--limit", 25)
    assert "--device: expected a device that is there, got 'nothing'" in error(
        run_folder, "--data", tmp_path, "--device", "nothing"
    )
    expected = "--protocol: expected a whole number of folds of 1,000 images for folds, found 24 images"
    assert expected in error(run_folder, "--data", tmp_path, "--protocol", "folds")
    assert "--json: expected a file in a folder that is there" in error(
        run_folder, "--data", tmp_path, "--json", tmp_path / "a" / "b"
    )
    assert "--json: expected a file, got the folder" in error(run_folder, "--data", tmp_path, "--json", tmp_path)
    assert "--save-scores: expected a file in a" in error(run_folder, "--data", tmp_path, "--save-scores", tmp_path / "a" / "b")
    (tmp_path / "test_caps.txt").write_text("one\n" * 7)
    assert "test_caps.txt: expected 120 captions" in error(run_folder, "--data", tmp_path)

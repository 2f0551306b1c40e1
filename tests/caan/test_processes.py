"""Several processes: scores, ranks, losses and gradients of one; a lost process ends the job, and what was done is kept."""

import csv
import json
import os
import re
import signal
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from ablation import TABLE_4
from jobs import run_job
from models import make_model
from runs import CONFIG, assert_same_metrics, assert_same_weights, trainer

from caan import checkpoint, kept, scorer, training
from caan.data import load_scan_split
from caan.evaluation import evaluate
from caan.metrics import GRADIENTS
from caan.processes import LostProcessError, Processes


def cut_small():
    """Blocks of 10 images in chunks of 5, batches of 7 captions: 3 blocks, 54 units."""
    scorer._TILE = (5, 7)
    scorer._BLOCK_BYTES = 10 * 5 * 4 * 3 * 16
    kept._SAVE_SECONDS = 0


@pytest.fixture
def small(monkeypatch):
    for module, name in ((scorer, "_TILE"), (scorer, "_BLOCK_BYTES"), (kept, "_SAVE_SECONDS")):
        monkeypatch.setattr(module, name, getattr(module, name))
    cut_small()


def load(model_file):
    model, vocabulary, _ = checkpoint.load_model(model_file)
    return [(model, vocabulary)]


def evaluate_shared(processes, folder, model_file, keep, scores, dies_after=None):
    """In a process of a job: evaluate, with an end of its own after so many units of the second pass."""
    cut_small()
    if dies_after is not None and processes.number == 1:
        finish = kept.KeptSums.finish

        def finish_or_die(self, unit):
            finish(self, unit)
            if "positives" not in self._sums:
                nonlocal dies_after
                dies_after -= 1
                if dies_after == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        kept.KeptSums.finish = finish_or_die
    try:
        found = evaluate(
            load(model_file),
            load_scan_split(folder, "test"),
            fold_size=8,
            save_scores=scores,
            keep=keep,
            processes=processes,
            say=(folder / f"said-{processes.number}").write_text,
        )
    except LostProcessError as error:
        (folder / "lost").write_text(str(error))
        raise SystemExit(3) from None
    (folder / f"found-{processes.number}.json").write_text(json.dumps([repr(found.figures), repr(found.fold_figures)]))


def test_evaluation_is_that_of_one_process_bit_for_bit(split, tmp_path, model_file, small):
    alone = evaluate(load(model_file), split, fold_size=8, save_scores=tmp_path / "alone.npy")
    scores = tmp_path / "shared.npy"
    assert run_job(evaluate_shared, tmp_path, model_file, tmp_path / "keep", scores) == [0, 0]
    assert scores.read_bytes() == (tmp_path / "alone.npy").read_bytes()
    expected = [repr(alone.figures), repr(alone.fold_figures)]
    assert [json.loads((tmp_path / f"found-{number}.json").read_text()) for number in range(2)] == [expected] * 2


def test_a_lost_process_ends_the_job_and_the_next_try_goes_on(split, tmp_path, model_file, small, monkeypatch):
    alone = evaluate(load(model_file), split, fold_size=8, save_scores=tmp_path / "alone.npy")
    scores, keep = tmp_path / "shared.npy", tmp_path / "keep"
    codes = run_job(evaluate_shared, tmp_path, model_file, keep, scores, 4)
    assert codes == [3, -signal.SIGKILL]
    assert "process 0 of 2, counted from 0: another process of this job has ended" in (tmp_path / "lost").read_text()
    assert not scores.exists() and len(list(keep.glob("evaluation-*/ranks-*"))) == 2

    done = [unit for path in keep.glob("evaluation-*/ranks-*") for unit in checkpoint.read(path).facts["units"]]
    # Process 0 had ended its share, process 1 four units of its own.
    assert len(done) == len(set(done)) > 4

    # One process goes on where two were.
    scored, said = [], []
    tiles = scorer.Scorer.tiles

    def counted(self, loaded):
        scored.append(loaded.unit.number)
        yield from tiles(self, loaded)

    monkeypatch.setattr(scorer.Scorer, "tiles", counted)
    found = evaluate(load(model_file), split, fold_size=8, save_scores=scores, keep=keep, say=said.append)
    assert sorted(scored + done) == list(range(54))
    assert found.figures == alone.figures and found.fold_figures == alone.fold_figures
    assert scores.read_bytes() == (tmp_path / "alone.npy").read_bytes()
    [positives, ranks] = said
    assert positives.startswith("continuing (positives): 2,880 of 2,880 pairs were done")
    assert re.match(r"continuing \(ranks\): [\d,]+ of 2,880 pairs were done, and kept in .*evaluation-", ranks)
    assert found.kept.parent == keep


def cannot_tell(processes, run, data):
    """In a process of a job: `caan evaluate`, whose figures the first process cannot write."""
    from caan.commands import evaluate as command
    from caan.commands import main

    def full(*arguments):
        raise OSError("full")

    kept._SAVE_SECONDS = 0
    command.joined = lambda device: nullcontext(processes)
    command._tell = full
    raise SystemExit(main(["evaluate", str(run), "--data", str(data)]))


@pytest.fixture
def dense_file(split, tmp_path):
    path = tmp_path / "dense.safetensors"
    checkpoint.save_model(path, *make_model(split, 0, intra="features"))
    return path


def test_a_dense_model_is_evaluated_by_two_processes(split, tmp_path, dense_file):
    alone = evaluate(load(dense_file), split, fold_size=8, save_scores=tmp_path / "alone.npy")
    assert run_job(evaluate_shared, tmp_path, dense_file, None, tmp_path / "shared.npy") == [0, 0]
    np.testing.assert_allclose(np.load(tmp_path / "shared.npy"), np.load(tmp_path / "alone.npy"), atol=2e-6)
    assert json.loads((tmp_path / "found-1.json").read_text())[0] == repr(alone.figures)


def test_nobody_forgets_before_the_figures_are_safe(split, tmp_path, model_file):
    assert run_job(cannot_tell, model_file, tmp_path) == [1, 1]
    assert list(tmp_path.glob("evaluation-*/ranks-*"))


def test_shares_are_alike(split):
    whole = scorer.Scorer([make_model(split, 0)], split, torch.device("cpu"), 0)
    whole.tile = (5, 7)
    units = whole.units(torch.zeros(24, dtype=torch.int64))
    shares = [scorer.share(units, Processes(process, 3)) for process in range(3)]
    assert [unit.number for share in shares for unit in share] == [unit.number for unit in units]
    work = [sum(len(unit.images) * unit.words for unit in share) for share in shares]
    assert max(work) < 1.35 * min(work)


# Nothing random: of what is, each process draws its own.
PLAIN = {"region_drop": 0.0, "word_drop": 0.0, "dropout": 0.0}


def train_shared(processes, world, folder, model, config, dies_at=None):
    training._ROW_STEPS = 1
    run = trainer(world, folder, config, model, processes=processes, save_seconds=0.0)
    step = run._train_step
    kept_gradients = {}

    def watched(batch, images, form):
        if run.step == dies_at and processes.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        result = step(batch, images, form)
        if not kept_gradients:
            kept_gradients.update(
                {name: parameter.grad.clone() for name, parameter in run.model.named_parameters() if parameter.grad is not None}
            )
        return result

    run._train_step = watched
    try:
        run.run()
    except LostProcessError:
        raise SystemExit(3) from None
    checkpoint.write(folder.with_name(f"{folder.name}-{processes.number}"), kept_gradients, {"said": run.said})


def epochs(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["rsum"]]


def losses(folder):
    rows = (folder / "metrics.csv").read_text().splitlines()
    return [float(row.split(",")[3]) for row in rows[1:] if row.split(",")[3]]


@pytest.mark.parametrize(("warmup", "row"), [(0.0, "CAAN"), (1.0, "CAAN"), (0.0, "baseline"), (0.0, "IA+FA")])
def test_training_is_that_of_one_process_with_the_whole_batch(warmup, row, world, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_ROW_STEPS", training._ROW_STEPS)
    config = replace(CONFIG, warmup_epochs=warmup)
    model = PLAIN | TABLE_4[row]
    train_shared(Processes(), world, tmp_path / "alone", model, config)
    assert run_job(train_shared, world, tmp_path / "shared", model, config) == [0, 0]
    alone, *shared = (checkpoint.read(tmp_path / name) for name in ("alone-0", "shared-0", "shared-1"))
    assert set(alone.tensors) == set(shared[0].tensors) and ("attention.affinity" in alone.tensors) == (row != "baseline")
    assert not shared[1].facts["said"] and any("epoch 2 of 2" in line for line in shared[0].facts["said"])
    for name, gradient in alone.tensors.items():
        assert torch.equal(shared[0].tensors[name], shared[1].tensors[name])
        # After clipping; of one and the same batch, whose rows are added up in another order.
        torch.testing.assert_close(shared[0].tensors[name], gradient, atol=2e-6, rtol=1e-4)
    norms = [[float(row[name]) for name in GRADIENTS] for row in epochs(tmp_path / "shared")]
    assert norms[0] == pytest.approx([float(epochs(tmp_path / "alone")[0][name]) for name in GRADIENTS], rel=0.02)
    # Later, hardest negatives make much of last bits.
    assert losses(tmp_path / "shared")[:6] == pytest.approx(losses(tmp_path / "alone")[:6], rel=1e-4)
    ours, theirs = (checkpoint.read(tmp_path / name / "last.safetensors") for name in ("shared", "alone"))
    assert ours.facts["place"]["step"] == theirs.facts["place"]["step"] == 18


def test_training_goes_on_after_a_lost_process(world, tmp_path):
    random = {"region_drop": 0.3, "word_drop": 0.3, "dropout": 0.1}
    assert run_job(train_shared, world, tmp_path / "undisturbed", random, CONFIG) == [0, 0]
    assert run_job(train_shared, world, tmp_path / "lost", random, CONFIG, 7) == [3, -signal.SIGKILL]
    assert checkpoint.read(tmp_path / "lost" / "last.safetensors").facts["place"]["step"] == 7
    assert run_job(train_shared, world, tmp_path / "lost", random, CONFIG) == [0, 0]
    assert_same_weights(tmp_path / "undisturbed", tmp_path / "lost")
    assert_same_metrics(tmp_path / "undisturbed", tmp_path / "lost")


def test_batches_that_cannot_be_shared(world, tmp_path):
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 3 processes, got 20"):
        trainer(world, tmp_path, processes=Processes(0, 3))

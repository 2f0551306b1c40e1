"""Training: it learns, says what goes wrong, and continues where it was killed as if it had not been."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ablation import TABLE_4
from runs import CONFIG, assert_same_metrics, assert_same_weights, trainer
from safetensors.torch import save_file

from caan import CAAN, ModelConfig, Vocabulary, checkpoint, errors, loss, metrics, signals, training
from caan.data import batches, channel_statistics, load_scan_split
from caan.model import RegionEncoder
from caan.presets import PRESETS
from caan.training import Trainer

EVERYTHING = {"region_drop": 0.0, "word_drop": 0.0, "width": 24}


def test_it_learns(world, tmp_path):
    run = trainer(world, tmp_path / "run", replace(CONFIG, epochs=12, decay_epochs=(8.0,)), EVERYTHING)
    before = run.validate().rsum
    run.run()
    assert before < 150 < 350 < run.best_rsum
    model, vocabulary, facts = checkpoint.load_model(tmp_path / "run")
    assert vocabulary.words == Vocabulary.load(tmp_path / "run" / "vocabulary.json").words
    assert facts["validation"]["image_to_text"]["r10"] > 60 and facts["training"]["epochs"] == 12
    assert not torch.equal(model.region_encoder.deviation, torch.ones(10))
    recalls = r"R@1/5/10 image → text [\d. ]+, text → image [\d. ]+, rsum [\d.]+"
    said = rf"epoch 12 of 12: .*: {recalls}; gradient norm [\d.]+ \(median\), [\d.]+ \(largest\), \d+% of steps clipped"
    assert any(re.match(said, text) for text in run.said)


def test_the_average_of_a_short_run_forgets_how_it_began(world, tmp_path):
    run = trainer(world, tmp_path, replace(CONFIG, average=0.9999))
    weights = []

    def train_step(batch, images, form):
        results = Trainer._train_step(run, batch, images, form)
        weights.append(run.model.attention.affinity.detach().clone())
        return results

    run._train_step = train_step
    run.run()
    expected = weights[0]
    for step, now in enumerate(weights[1:], 1):
        expected = expected.lerp(now, 3 / (step + 3))
    averaged = run.average.module.attention.affinity
    assert len(weights) == 18 and torch.allclose(averaged, expected, rtol=1e-5, atol=1e-7)
    assert (averaged - weights[-1]).norm() < (averaged - weights[0]).norm()


def test_metrics(world, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trainer(world, tmp_path, replace(CONFIG, clip_norm=17.0))
    norms = []

    def train_step(batch, images, form):
        loss, norm = Trainer._train_step(run, batch, images, form)
        norms.append(float(norm))
        return loss, norm

    run._train_step = train_step
    run.run()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert run.steps_per_epoch == 9 and tuple(rows[0]) == metrics.COLUMNS
    assert [int(row["step"]) for row in rows] == [9, 9, 18, 18]
    assert [bool(row["rsum"]) for row in rows] == [False, True, False, True]
    assert float(rows[-1]["epoch"]) == 2 and float(rows[2]["learning_rate"]) == pytest.approx(5e-4)
    assert all(float(row["pairs_per_second"]) > 0 and float(row["loss"]) > 0 for row in rows if row["loss"])
    for row, own in ((rows[1], norms[:9]), (rows[3], norms[9:])):
        found = [float(row[f"gradient_norm_{name}"]) for name in ("median", "mean", "max")]
        assert found == pytest.approx([np.median(own), np.mean(own), max(own)])
        assert float(row["clipped_share"]) == pytest.approx(sum(norm > 17 for norm in own) / 9)
    assert 0 < sum(norm > 17 for norm in norms) < 18 and float(rows[0]["gradient_norm"]) == norms[8]
    events = EventAccumulator(str(tmp_path)).Reload()
    shares = [float(row["clipped_share"]) for row in rows if row["clipped_share"]]
    assert [event.value for event in events.Scalars("clipped_share")] == pytest.approx(shares)
    assert [event.step for event in events.Scalars("rsum")] == [9, 18]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([float(row["loss"]) for row in rows if row["loss"]])


@pytest.mark.parametrize(
    ("kills", "precision", "row"),
    [
        ((1,), "float32", "CAAN"),
        ((4, 5, 13), "float32", "CAAN"),
        ((9,), "bfloat16", "CAAN"),
        ((17,), "float16", "CAAN"),
        *(((6,), "float32", row) for row in TABLE_4 if row != "CAAN"),
        ((6,), "bfloat16", "IA+FA"),
        ((6,), "float16", "baseline"),
    ],
)
def test_continued_is_as_good_as_undisturbed(world, tmp_path, kills, precision, row, monkeypatch):
    # Rows of metrics.csv after steps 4, 8, 9, 12, 16 and 18.
    monkeypatch.setattr(training, "_ROW_STEPS", 4)
    config = replace(CONFIG, precision=precision, average=0.9 if precision == "bfloat16" else 0.0)
    trainer(world, tmp_path / "undisturbed", config, TABLE_4[row]).run()

    for kill in kills:
        run = trainer(world, tmp_path / "killed", config, TABLE_4[row], save_seconds=0)

        def step(batch, images, form, run=run, kill=kill):
            if run.step == kill:
                raise MemoryError
            return Trainer._train_step(run, batch, images, form)

        monkeypatch.setattr(run, "_train_step", step)
        with pytest.raises(MemoryError):
            run.run()
    final = trainer(world, tmp_path / "killed", config, TABLE_4[row], save_seconds=0)
    assert final.step == kills[-1] and "continuing" in final.said[0]
    final.run()
    assert_same_weights(tmp_path / "undisturbed", tmp_path / "killed")
    assert_same_metrics(tmp_path / "undisturbed", tmp_path / "killed")


def test_a_step_without_a_finite_gradient_does_not_count():
    assert metrics.gradient_row([1.0, float("inf"), 3.0, 5.0, float("nan")], 2.5) == {
        "gradient_norm_median": 3.0,
        "gradient_norm_mean": 3.0,
        "gradient_norm_max": 5.0,
        "clipped_share": pytest.approx(2 / 3),
    }


SCRIPT = f"""
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from runs import CONFIG, trainer
trainer(Path(sys.argv[1]), Path(sys.argv[2]), replace(CONFIG, epochs=int(sys.argv[3])), save_seconds=0).run()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_continues(world, tmp_path, number):
    config = replace(CONFIG, epochs=10)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(world), str(killed), "10"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (killed / "last.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0, error
    run = trainer(world, killed, config)
    assert 1 <= run.step < run.total_steps, error
    if number != signal.SIGKILL:
        assert "KeyboardInterrupt" in error
    run.run()
    trainer(world, tmp_path / "undisturbed", config).run()
    assert_same_weights(tmp_path / "undisturbed", killed)


@pytest.mark.parametrize("step", [5, 9, 18])
def test_a_stop_request_loses_nothing(world, tmp_path, step, monkeypatch):
    monkeypatch.setattr(training, "_ROW_STEPS", 4)
    trainer(world, tmp_path / "undisturbed").run()
    run = trainer(world, tmp_path / "stopped")

    def train_step(batch, images, form):
        if run.step == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return Trainer._train_step(run, batch, images, form)

    monkeypatch.setattr(run, "_train_step", train_step)
    with pytest.raises(KeyboardInterrupt, match=f"stopped; the run was saved after step {step}, and the same command continues"):
        run.run()
    final = trainer(world, tmp_path / "stopped")
    assert final.step == step
    final.run()
    assert_same_weights(tmp_path / "undisturbed", tmp_path / "stopped")
    assert_same_metrics(tmp_path / "undisturbed", tmp_path / "stopped")


@pytest.mark.parametrize("kill", ["in the validation", "before it is saved"])
def test_a_validation_is_not_waited_for(world, tmp_path, kill, monkeypatch):
    trainer(world, tmp_path / "undisturbed").run()
    run = trainer(world, tmp_path / "stopped")

    def interrupted(*_):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal was not heard")

    def saved():
        if run.validated:
            raise MemoryError
        Trainer._save(run)

    if kill == "in the validation":
        monkeypatch.setattr(run, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt, match="saved after step 9, and the same command"):
            run.run()
    else:
        monkeypatch.setattr(run, "_save", saved)
        with pytest.raises(MemoryError):
            run.run()
    final = trainer(world, tmp_path / "stopped")
    assert final.step == 9 and not final.validated
    final.run()
    assert_same_weights(tmp_path / "undisturbed", tmp_path / "stopped")
    assert_same_metrics(tmp_path / "undisturbed", tmp_path / "stopped")


def test_data_that_never_come_are_not_waited_for(world, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_GRACE", 0.2)
    run = trainer(world, tmp_path)

    def train_step(batch, images, form):
        if run.step == 2:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)
        return Trainer._train_step(run, batch, images, form)

    monkeypatch.setattr(run, "_train_step", train_step)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="stopped; nothing was saved yet"):
        run.run()
    assert time.monotonic() - begin < 30
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_belongs_to_one_process(world, tmp_path, monkeypatch):
    run, other = trainer(world, tmp_path), trainer(world, tmp_path)

    def train_step(batch, images, form):
        with pytest.raises(BlockingIOError, match="folder: expected a run that no other process uses, found .* in use"):
            other.run()
        return Trainer._train_step(run, batch, images, form)

    monkeypatch.setattr(run, "_train_step", train_step)
    run.run()


def test_a_finished_run_does_nothing_and_can_be_extended(world, tmp_path):
    trainer(world, tmp_path / "run").run()
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    trainer(world, tmp_path / "run").run()
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before
    longer = replace(CONFIG, epochs=3)
    trainer(world, tmp_path / "run", longer).run()
    trainer(world, tmp_path / "whole", longer).run()
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_other_settings_are_refused(world, tmp_path, write_split):
    trainer(world, tmp_path).run()
    with pytest.raises(ValueError, match=r"learning_rate: expected 0\.005, as in the run in .*, got 1\.0; another folder .--out"):
        trainer(world, tmp_path, replace(CONFIG, learning_rate=1.0))
    with pytest.raises(ValueError, match=r"decay_epochs: expected \(1\.5,\)"):
        trainer(world, tmp_path, replace(CONFIG, decay_epochs=(1.0, 2.0)))
    with pytest.raises(ValueError, match="inter: expected True, as in the run"):
        trainer(world, tmp_path, model={"inter": False})
    with pytest.raises(ValueError, match="intra: expected semantics, as in the run in .*, got None"):
        trainer(world, tmp_path, model={"intra": None})
    with pytest.raises(ValueError, match=r"epochs: expected at least the 2 that .* has had, got 1"):
        trainer(world, tmp_path, replace(CONFIG, epochs=1))
    for split in ("dev", "train"):
        features = np.load(world / f"{split}_ims.npy")
        np.save(world / f"{split}_ims.npy", features + 1)
        name = {"dev": "validation"}.get(split, split)
        of_run = f"{name}: expected the features, ids and captions of the run in {tmp_path}"
        with pytest.raises(ValueError, match=f"{of_run}, found others in {world}; another folder"):
            trainer(world, tmp_path)
        np.save(world / f"{split}_ims.npy", features)
    captions = load_scan_split(world, "train").captions
    write_split(world, "train", np.load(world / "train_ims.npy")[:-1], captions[:-5])
    with pytest.raises(ValueError, match="train: expected the features, ids and captions of the run"):
        trainer(world, tmp_path)
    write_split(world, "train", np.zeros((36, 4, 7), dtype=np.float32), captions)
    with pytest.raises(ValueError, match=f"data: expected features of width 10, as in the run in {tmp_path}, found 7 in {world}; "):
        trainer(world, tmp_path)
    write_split(world, "train", np.zeros((36, 4, 10), dtype=np.float32), [caption.replace("near", "far") for caption in captions])
    with pytest.raises(ValueError, match="vocabulary"):
        trainer(world, tmp_path)


def test_unknown_words_are_told_when_a_run_begins(world, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_MANY_UNKNOWN", -1)
    begun = trainer(world, tmp_path / "run")
    assert [text.split(": ")[:2] for text in begun.said] == [["train", "warning"], ["dev", "warning"]]
    begun.run()
    assert [text.split()[0] for text in trainer(world, tmp_path / "run").said] == ["continuing"]


def test_a_broken_state_is_named(world, tmp_path):
    trainer(world, tmp_path).run()
    path = tmp_path / "last.safetensors"
    tensors, facts = checkpoint.read(path)
    checkpoint.write(path, {name: tensor for name, tensor in tensors.items() if name != "random.cpu"}, facts)
    with pytest.raises(errors.FormatError, match=r"last\.safetensors: expected the state of a run.*random\.cpu"):
        trainer(world, tmp_path)
    save_file(tensors, path, {"caan": json.dumps({"format": "caan-1", **facts})})
    with pytest.raises(errors.FormatError, match=r"last\.safetensors: .* before the operator followed the paper's equations"):
        trainer(world, tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(errors.FormatError, match=r"last\.safetensors"):
        trainer(world, tmp_path)


def test_collapse_is_said(world, tmp_path, monkeypatch):
    run = trainer(world, tmp_path, replace(CONFIG, epochs=3))
    run.watch = loss.CollapseWatch(patience=5)
    constant = torch.zeros(20, 20)
    monkeypatch.setattr(run.model.attention, "forward", lambda *sides: constant + 0 * run.model.attention.affinity.sum())
    run.run()
    [text] = [text for text in run.said if "collapse" in text]
    assert "--warmup-epochs" in text and text.startswith("step ")


def test_a_loss_that_is_no_number_stops(world, tmp_path, monkeypatch):
    run = trainer(world, tmp_path)
    with torch.no_grad():
        run.model.attention.affinity[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss is nan.* in step 1;"):
        run.run()


@pytest.mark.parametrize("what", ["loss", "norm"])
def test_weights_that_are_no_numbers_are_never_saved(world, tmp_path, monkeypatch, what):
    run = trainer(world, tmp_path, save_seconds=0)

    def train_step(batch, images, form):
        loss, norm = Trainer._train_step(run, batch, images, form)
        nan = torch.tensor(float("nan"))
        return ((nan, norm) if what == "loss" else (loss, nan)) if run.step == 4 else (loss, norm)

    monkeypatch.setattr(run, "_train_step", train_step)
    with pytest.raises(FloatingPointError, match=r"nan,? in step 5; .*last\.safetensors is from an earlier step"):
        run.run()
    assert trainer(world, tmp_path).step == 4


def test_bfloat16_learns_as_well(world, tmp_path):
    run = trainer(world, tmp_path, replace(CONFIG, epochs=12, decay_epochs=(8.0,), precision="bfloat16"), EVERYTHING)
    run.run()
    assert run.best_rsum > 300
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


def test_a_signal_to_the_whole_group_is_left_to_the_parent(world, tmp_path):
    script = SCRIPT.replace("save_seconds=0", "save_seconds=0, workers=2")
    command = [sys.executable, "-c", script, str(world), str(tmp_path / "run"), "10"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "last.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "KeyboardInterrupt: stopped; the run was saved" in error and "DataLoader worker" not in error


def test_workers_change_nothing(world, tmp_path):
    trainer(world, tmp_path / "none").run()
    trainer(world, tmp_path / "two", workers=2).run()
    assert_same_weights(tmp_path / "none", tmp_path / "two")


def test_a_channel_that_never_varies(world):
    features = np.load(world / "train_ims.npy")
    features[..., 3] = 3.3
    np.save(world / "train_ims.npy", features)
    encoder = RegionEncoder(10, 4)
    encoder.set_statistics(*channel_statistics(load_scan_split(world, "train")))
    assert encoder.deviation[3] == 1 and (encoder.deviation[:3] != 1).all()


def test_the_state_of_a_run_scores_as_its_best(world, tmp_path):
    run = trainer(world, tmp_path, replace(CONFIG, epochs=1))
    run.run()
    best, last = (checkpoint.load_model(tmp_path / f"{name}.safetensors")[0].state_dict() for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_channel_statistics_leave_padding_out(world):
    counts = np.arange(36) % 4 + 1
    features = np.load(world / "train_ims.npy")
    for row, count in zip(features, counts, strict=True):
        row[count:] = np.nan
    np.save(world / "train_ims.npy", features)
    np.save(world / "train_num_boxes.npy", counts)
    mean, deviation = channel_statistics(load_scan_split(world, "train"))
    real = np.concatenate([row[:count] for row, count in zip(features, counts, strict=True)]).astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), real.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(deviation.numpy(), real.std(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": 1}, "batch_size: expected at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number more than 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a number more than 0, got nan"),
        ({"warmup_epochs": float("nan")}, "warmup_epochs: expected at least 0, got nan"),
        ({"decay_epochs": (1.0, float("inf"))}, "decay_epochs: expected at least 0, got inf"),
        ({"average": 1.0}, "average: expected at least 0 and less than 1, got 1.0"),
        ({"warmup_form": "median"}, "warmup_form: expected one of hardest, sum, mean, got 'median'"),
        ({"precision": "float8"}, "precision: expected one of fp32, bf16, fp16, got 'float8'"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(ValueError) as error:
        replace(CONFIG, **change)
    assert str(error.value) == message


def test_presets_are_the_papers_where_it_says():
    for name, rate, half in (("f30k", 2e-4, 15), ("coco", 5e-4, 10)):
        config, model = PRESETS[name].training, ModelConfig(2048, 8481, **PRESETS[name].model)
        assert (config.learning_rate, config.decay_epochs, config.decay_factor) == (rate, (half,), 0.1)
        assert config.epochs == 2 * half
        assert (model.similarity, model.inter, model.intra, model.word_width) == ("dot", True, "semantics", 300)
        # "only 11 M" parameters, which the embeddings cannot be among: their number depends on the data.
        counted = {name: parameter.numel() for name, parameter in CAAN(model).named_parameters()}
        assert 11e6 < sum(counted.values()) - counted["word_encoder.embedding.weight"] < 12e6
        # What it does not say: the field's habits.
        assert (config.batch_size, config.margin, config.clip_norm, config.warmup_epochs) == (128, 0.2, 2.0, 1)
        assert (model.width, model.hidden_width, model.unit_length) == (1024, 64, True)
        # And nothing beyond.
        off = ("standardize", "dropout", "region_drop", "word_drop")
        assert not any(getattr(model, name) for name in off) and not config.average and not config.ramp_steps
    assert PRESETS["cpu"].model["similarity"] == "cosine"

"""Checkpoints: what goes in comes out, and nothing else is taken for one."""

import json
import os

import pytest
import torch
from models import attentive
from safetensors import SafetensorError
from safetensors.torch import save_file

from caan import CAAN, ModelConfig, Vocabulary, checkpoint, errors
from caan.files import replacing


@pytest.fixture
def vocabulary():
    return Vocabulary(["a", "dog", "‘quoted’"])


@pytest.fixture
def model(vocabulary):
    torch.manual_seed(1)
    model = attentive(CAAN(ModelConfig(6, len(vocabulary), width=8, hidden_width=5, word_width=4, intra=None, dropout=0.3)))
    model.region_encoder.set_statistics(torch.arange(6.0), torch.tensor([0.0, 1, 2, 3, 4, 5]))
    return model


def test_a_model_comes_back(tmp_path, model, vocabulary):
    path = tmp_path / "best.safetensors"
    checkpoint.save_model(path, model, vocabulary, {"step": 7})
    random_state = torch.get_rng_state()
    for place in (path, tmp_path):
        loaded, words, facts = checkpoint.load_model(place)
        assert loaded.config == model.config and words.words == vocabulary.words and facts["step"] == 7
        assert not loaded.training
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(random_state, torch.get_rng_state())
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


def test_what_is_no_checkpoint_is_named(tmp_path, model, vocabulary):
    path = tmp_path / "best.safetensors"
    with pytest.raises(errors.MissingFileError, match=r"best\.safetensors: .*; caan train --data DATA --out .* makes a run"):
        checkpoint.load_model(tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(errors.FormatError, match="expected a checkpoint in safetensors"):
        checkpoint.load_model(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(errors.FormatError, match="that something else wrote"):
        checkpoint.load_model(path)
    save_file({"x": torch.ones(2)}, path, {"caan": json.dumps({"format": "caan-99"})})
    with pytest.raises(errors.FormatError, match="expected a checkpoint of format caan-2, found caan-99$"):
        checkpoint.load_model(path)
    checkpoint.write(path, {"x": torch.ones(2)}, {})
    with pytest.raises(errors.FormatError, match="expected a model of caan: KeyError"):
        checkpoint.load_model(path)
    checkpoint.save_model(path, model, vocabulary)
    tensors, facts = checkpoint.read(path)
    del tensors["model.attention.affinity"]
    checkpoint.write(path, tensors, facts)
    with pytest.raises(errors.FormatError, match=r"attention\.affinity"):
        checkpoint.load_model(path)


def test_a_model_of_the_old_operator_is_refused(tmp_path, model, vocabulary):
    path = tmp_path / "best.safetensors"
    checkpoint.save_model(path, model, vocabulary)
    tensors, facts = checkpoint.read(path)
    facts["model"] |= {"intra": False, "normalization": "l2"}
    save_file(tensors, path, {"caan": json.dumps({"format": "caan-1", **facts})})
    with pytest.raises(errors.FormatError) as error:
        checkpoint.load_model(path)
    assert str(error.value) == (
        f"{path}: expected a checkpoint of format caan-2, found caan-1, from before the operator followed the paper's equations, "
        "to which its weights mean nothing: train the model again"
    )


def test_a_dense_model_comes_back(tmp_path, vocabulary):
    model = CAAN(ModelConfig(6, len(vocabulary), width=8, word_width=4, intra="features", similarity="cosine", unit_length=False))
    with torch.no_grad():
        model.attention.region_bilinear.normal_()
    checkpoint.save_model(tmp_path / "best.safetensors", model, vocabulary)
    loaded, _, _ = checkpoint.load_model(tmp_path)
    assert loaded.config == model.config and torch.equal(loaded.attention.region_bilinear, model.attention.region_bilinear)


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_a_run_is_no_place_for_another_model(tmp_path, model, vocabulary, name):
    checkpoint.save_model(tmp_path / name, model, vocabulary)
    with pytest.raises(ValueError, match=f"^folder: expected one that holds no run, got .* with {name}$"):
        checkpoint.save_pretrained(tmp_path, model, vocabulary)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_run_that_began_beside_another_model_is_what_is_read(tmp_path, model, vocabulary):
    checkpoint.save_pretrained(tmp_path, model, vocabulary, {"step": 1})
    checkpoint.save_model(tmp_path / "best.safetensors", model, vocabulary, {"step": 2})
    assert checkpoint.load_model(tmp_path)[2]["step"] == 2


def test_a_save_that_was_killed_is_no_model(tmp_path, model, vocabulary, monkeypatch):
    """The tensors of one model with the settings of another would be one that nobody has trained."""
    checkpoint.save_pretrained(tmp_path, model, vocabulary)
    replacing = checkpoint.replacing

    def kill(path):
        if path.name == "config.json":
            raise KeyboardInterrupt
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replacing", kill)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_pretrained(tmp_path, model, vocabulary)
    with pytest.raises(
        errors.MissingFileError, match=r"config\.json: expected the settings of a model of caan, found no such file"
    ):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("write", ["save_model", "save_pretrained"])
def test_a_disk_that_takes_no_tensors(tmp_path, model, vocabulary, monkeypatch, write):
    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"model\.safetensors: expected to be able to write it: No space left on device"):
        getattr(checkpoint, write)(tmp_path / ("model.safetensors" if write == "save_model" else ""), model, vocabulary)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(tmp_path, model, vocabulary, part):
    path = tmp_path / "best.safetensors"
    checkpoint.save_model(path, model, vocabulary)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(errors.FormatError, match=r"best\.safetensors"):
        checkpoint.load_model(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), replacing(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError("disk")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "far").mkdir()
    real, link, pipe = tmp_path / "far" / "real.json", tmp_path / "link.json", tmp_path / "pipe"
    real.write_text("old")
    link.symlink_to(real)
    with replacing(link) as unfinished:
        unfinished.write_text("new")
    assert link.is_symlink() and real.read_text() == "new" and list(real.parent.iterdir()) == [real]
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as unfinished:
        unfinished.write_text("through")
    assert os.read(reader, 100) == b"through" and pipe.is_fifo()
    os.close(reader)

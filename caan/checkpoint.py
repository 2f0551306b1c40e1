"""Checkpoints: one safetensors file each, tensors and a JSON text, written whole or not at all. Nothing is unpickled."""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import FormatError, MissingFileError
from .files import make_folder, parse_json, read_text, replacing
from .hub import fetched
from .isolation import isolated
from .model import CAAN, ModelConfig
from .text import normalised
from .vocabulary import MARKS, Vocabulary

FORMAT = "caan-2"
# In a folder of `save_pretrained`.
CONFIG, TENSORS = "config.json", "model.safetensors"
# In the folder of a run.
BEST, LAST = "best.safetensors", "last.safetensors"
# Under these, the operator had other equations than the paper's.
_OLD_OPERATOR = "caan-1"
TRAIN_AGAIN = "from before the operator followed the paper's equations, to which its weights mean nothing: train the model again"


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by name, on the CPU.
        facts: plain values, as JSON has them.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and plain values; a reader sees the old file or the new one, never a part.

    Raises:
        OSError: it cannot be written; the old file stays.
    """
    with replacing(path) as unfinished:
        _save(path, unfinished, tensors, {"caan": json.dumps({"format": FORMAT, **facts})})


def _save(path: str | Path, unfinished: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors to the file that will take the place of `path`."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, unfinished, metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: expected to be able to write it: {error}") from None


def _load(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, by name, and its metadata."""
    if not path.is_file():
        raise MissingFileError(f"{path}: expected {expected}, found no such file")
    try:
        with safe_open(path, "pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise FormatError(f"{path}: expected {expected} in safetensors: {error}") from None


def read(path: str | Path) -> Contents:
    """Read what `write` wrote.

    Raises:
        MissingFileError, FormatError: there is no such file, or it is none of ours.
        ValueError: the path is not text in UTF-8.
    """
    path = Path(path)
    # What reads it takes no other name.
    normalised(str(path), "checkpoint")
    tensors, metadata = _load(path, "a checkpoint")
    try:
        facts = json.loads(metadata["caan"])
        found = facts.pop("format")
    except (KeyError, ValueError, TypeError, AttributeError):
        raise FormatError(f"{path}: expected a checkpoint of caan, found safetensors that something else wrote") from None
    if found != FORMAT:
        why = f", {TRAIN_AGAIN}" if found == _OLD_OPERATOR else ""
        raise FormatError(f"{path}: expected a checkpoint of format {FORMAT}, found {found}{why}")
    return Contents(tensors, facts)


def model_facts(model: CAAN, vocabulary: Vocabulary) -> dict[str, Any]:
    """What `load_model` needs beside the tensors."""
    return {"model": asdict(model.config), "words": vocabulary.words[len(MARKS) :]}


def save_model(path: str | Path, model: CAAN, vocabulary: Vocabulary, facts: dict[str, Any] | None = None) -> None:
    """Write a model, its words, and further facts about how it was made."""
    write(path, prefixed("model", model.state_dict()), {**(facts or {}), **model_facts(model, vocabulary)})


def save_pretrained(folder: str | Path, model: CAAN, vocabulary: Vocabulary, facts: dict[str, Any] | None = None) -> None:
    """Write a model to a folder as others exchange models: `model.safetensors` with the tensors by their names, and `config.json`
    with all that `load_model` needs beside them.

    Raises:
        ValueError: the folder holds a run, whose model a reader could not tell from this one.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    make_folder("folder", folder)
    for name in (BEST, LAST):
        if (folder / name).is_file():
            raise ValueError(f"folder: expected one that holds no run, got {folder} with {name}")
    config = {"format": FORMAT, "library_name": "caan_kernels", **(facts or {}), **model_facts(model, vocabulary)}
    with replacing(folder / TENSORS) as unfinished:
        _save(folder / TENSORS, unfinished, model.state_dict(), {"format": "pt"})
        # A kill leaves no settings rather than those of other tensors.
        (folder / CONFIG).unlink(missing_ok=True)
    with replacing(folder / CONFIG) as unfinished:
        unfinished.write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def pretrained_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model that `save_pretrained` wrote: the one that is named, or the Hugging Face Hub's OWNER/NAME, fetched.

    Raises:
        MissingFileError: there is no such folder, and the name cannot be one of the Hub.
        MissingFileError, FormatError, ModuleNotFoundError: as `hub.fetched`.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        expected = f"a folder with {CONFIG} and {TENSORS}, or OWNER/NAME of a model on the Hugging Face Hub"
        raise MissingFileError(f"name: expected {expected}, got {str(name)!r}")
    return fetched(str(name), revision, (CONFIG, TENSORS))


def _read_pretrained(folder: Path) -> Contents:
    """What `save_pretrained` wrote, as `read` gives it."""
    expected = "the settings of a model of caan"
    facts = parse_json(folder / CONFIG, read_text(folder / CONFIG, expected), expected)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
        raise FormatError(f"{folder / CONFIG}: expected a model of format {FORMAT}, found {found}")
    tensors, _ = _load(folder / TENSORS, "the tensors of a model")
    return Contents(prefixed("model", tensors), facts)


def _best(path: Path) -> Path:
    """The checkpoint that is named, or the best of the run that is.

    Raises:
        MissingFileError: there is none; the message says which command makes it.
    """
    best = path / BEST if path.is_dir() else path
    if best.is_file():
        return best
    if (path / LAST).is_file():
        why = "the run has had no validation yet; the same caan train command continues it"
    elif (path / "index.json").is_file():
        why = "this is a gallery, and a run is expected"
    else:
        why = f"caan train --data DATA --out {path} makes a run"
    raise MissingFileError(f"{best}: expected a checkpoint, found no such file; {why}")


@isolated(gradients=True)
def load_model(path: str | Path) -> tuple[CAAN, Vocabulary, dict[str, Any]]:
    """Read a model, for scoring.

    Args:
        path: a checkpoint, or the folder of a run, whose best one is taken, or one of `save_pretrained`. Of a run's state,
            `last.safetensors`, it is the moving average of the weights where there is one.

    Returns:
        The model on the CPU in evaluation mode, its vocabulary, and all plain values of the file.

    Raises:
        MissingFileError, FormatError: there is no such file, or its parts do not fit together.
    """
    path = Path(path)
    saved = any((path / name).is_file() for name in (CONFIG, TENSORS))
    if saved and not (path / BEST).is_file():
        tensors, facts = _read_pretrained(path)
    else:
        tensors, facts = read(_best(path))
    weights = unprefixed("average.module", tensors) or unprefixed("model", tensors)
    try:
        # Weights are overwritten at once: drawing them must not move the caller's random state.
        with torch.random.fork_rng(devices=[]):
            model = CAAN(ModelConfig(**facts["model"]))
        model.load_state_dict(weights)
        return model.eval(), Vocabulary(facts["words"]), facts
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(f"{path}: expected a model of caan: {type(error).__name__}: {error}") from None


def digest(model: CAAN, vocabulary: Vocabulary) -> str:
    """A fingerprint of everything that decides a model's scores: its tensors, its configuration, its words."""
    result = hashlib.sha256(json.dumps(model_facts(model, vocabulary)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.cpu().flatten().contiguous().view(torch.uint8).numpy())
    return result.hexdigest()


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under longer names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors whose names begin with the prefix, under what is left of their names."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}

"""Whether a folder holds the run that is to continue in it."""

from pathlib import Path
from typing import Any

from . import checkpoint
from .model import CAAN
from .presets import TrainingConfig
from .settings import helps
from .vocabulary import Vocabulary

_ANEW = "another folder (--out) starts anew"


class OtherRunError(ValueError):
    """A folder holds a run with other settings.

    Attributes:
        folder: of the run.
        differences: of each setting that differs, its value in the run and the one that is asked for.
        preset: the settings that the run began from, "" where that is not known.
    """

    def __init__(self, folder: Path, differences: dict[str, tuple[Any, Any]], preset: str):
        self.folder, self.differences, self.preset = folder, differences, preset
        name, (before, value) = next(iter(differences.items()))
        more = f" (and {len(differences) - 1} more that differ)" if len(differences) > 1 else ""
        super().__init__(f"{name}: expected {before}, as in the run in {folder}, got {value}{more}; {_ANEW}")


def check_same_run(
    folder: Path,
    facts: dict[str, Any],
    config: TrainingConfig,
    model: CAAN,
    vocabulary: Vocabulary,
    data: dict[str, str],
    places: dict[str, Path],
) -> None:
    """Compare what a run was started with.

    Args:
        folder: of the run.
        facts: of its checkpoint.
        config, model, vocabulary: what is to be trained now, and how.
        data: digests of the splits, by name.
        places: the folders that these are in, for messages.

    Raises:
        OtherRunError: other settings.
        ValueError: features of another width, another vocabulary, or other data.
        KeyError: the checkpoint lacks one of them.
    """
    differences = {}
    for part, settings in (("training", config), ("model", model.config)):
        # What the data decide is no setting: what is said of the vocabulary and of the data tells more.
        for name in helps(type(settings)):
            # More epochs than were planned are more of the same run.
            if name == "epochs":
                continue
            before, value = facts[part][name], getattr(settings, name)
            before = tuple(before) if isinstance(before, list) else before
            if value != before:
                differences[name] = before, value
    if differences:
        raise OtherRunError(folder, differences, facts["training"].get("preset", ""))
    width, own = facts["model"]["region_width"], model.config.region_width
    if own != width:
        raise ValueError(
            f"data: expected features of width {width}, as in the run in {folder}, found {own} in {places['train']}; {_ANEW}"
        )
    if facts["words"] != checkpoint.model_facts(model, vocabulary)["words"]:
        raise ValueError(f"vocabulary: expected the words of the run in {folder}, got others; {_ANEW}")
    for name, digest in data.items():
        if facts["data"][name] != digest:
            raise ValueError(
                f"{name}: expected the features, ids and captions of the run in {folder}, found others in {places[name]}; {_ANEW}"
            )

"""Evaluation by the field's protocol: every image against every caption, tile by tile, in bounded memory.

The work is cut into units, a block of images with a batch of captions each. A score's bits depend on its unit alone, and what a
unit adds to the ranks is a sum, so units can be dealt to any number of processes, and to the next try after a kill.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .data import Split
from .isolation import isolated
from .kept import KeptSums
from .model import CAAN
from .processes import Processes
from .progress import bar
from .recall import Figures, RankCounter, folds
from .score_matrix import ScoreMatrix
from .scorer import Loaded, Scorer, Unit, identity, share
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        figures: every image competes with all captions; None where only folds were asked for.
        fold_figures: mean over the folds; None without folds.
        pairs: how many pairs the figures are of.
        scored: how many of them were scored in this try, by all processes.
        seconds: reading, encoding, scoring and counting together, of this try.
        kept: the folder that finished work was kept in, to be removed once the figures are safe.
    """

    figures: Figures | None
    fold_figures: Figures | None
    pairs: int
    scored: int
    seconds: float
    kept: Path | None = None


@isolated()
def evaluate(
    models: Sequence[tuple[CAAN, Vocabulary]],
    split: Split,
    *,
    fold_size: int | None = None,
    folds_only: bool = False,
    save_scores: str | Path | None = None,
    keep: str | Path | None = None,
    processes: Processes | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> Evaluation:
    """Score a split and count ranks.

    Beside a block of prepared images, one batch of captions and one tile of scores, only ranks are kept.

    Args:
        models: with their vocabularies; left on the device, in evaluation mode. The scores of several are averaged, as the
            field's ensembles are.
        split: what is scored.
        fold_size: also give the mean over consecutive folds of so many images, as for COCO's 5 x 1,000.
        folds_only: score only the pairs within folds.
        save_scores: a .npy file for the whole (I, T) float32 matrix, written through a memory map; several processes must
            all see its folder.
        keep: a folder; finished work is kept in a folder inside, `Evaluation.kept`, and the next try after a kill goes on from
            there. Several processes may see the same one, or each its own. None: nothing is kept.
        processes: those that share the work; all must call this with the same models and split. Scores and ranks are, bit for
            bit, those of one process on such a machine, and every process gets the result. None: this one alone.
        device: where.
        workers: processes that read images; 0 reads in this one.
        progress: show a bar of pairs, in the first process.
        say: takes what is to be told beside the bar.

    Raises:
        ValueError: fold_size does not divide the images, or an argument contradicts another.
        DataError: the features cannot be used, or have another width than a model's.
        OSError: a file cannot be written, or another evaluation is writing the same one.
        LostProcessError: another process has ended before this was done.
        KeyboardInterrupt: asked to stop; the message says what is kept.
    """
    _check(models, fold_size, folds_only, save_scores)
    processes, device = processes or Processes(), torch.device(device)
    fold_of_image = None if fold_size is None else folds(split.num_images, fold_size)
    scorer = Scorer(models, split, device, workers)
    units = scorer.units(fold_of_image if folds_only else torch.zeros(split.num_images, dtype=torch.int64, device="cpu"))
    for warning in dict.fromkeys(captions.warning() for captions in scorer.captions):
        if warning and processes.first:
            say(warning)
    start = time.monotonic()
    folder = matrix = None
    if keep is not None or save_scores is not None:
        matrix_path = save_scores and str(Path(save_scores).absolute())
        settings = {"fold_size": fold_size, "folds_only": folds_only, "save_scores": matrix_path}
        name = identity(models, split, device, scorer.tile, settings)
        folder = keep and Path(keep) / f"evaluation-{name}"
        if save_scores is not None:
            matrix = ScoreMatrix(Path(save_scores), name, (split.num_images, len(split.captions)), folder, processes)
    passes = _Passes(scorer, units, folder, matrix, processes, say, progress)
    try:
        positives = passes.positives(len(split.captions))
        counters = _counters(positives.to(device), split, fold_of_image, folds_only)
        counts = passes.counts(counters)
    except KeyboardInterrupt:
        if folder and folder.is_dir():
            raise KeyboardInterrupt(f"stopped; what was done is kept in {folder}, and the same command continues") from None
        raise
    except BaseException:
        if matrix and not folder:
            matrix.remove()
        raise
    if matrix:
        matrix.finish()
    figures = {}
    for name, counter in _counters(positives.to(device), split, fold_of_image, folds_only).items():
        counter.add_counts(*(counts[f"{name}.{part}"] for part in range(2)))
        figures[name] = counter.figures()
    seconds = time.monotonic() - start
    return Evaluation(figures.get("full"), figures.get("folds"), passes.total, passes.scored, seconds, folder)


def _check(models: Sequence, fold_size: int | None, folds_only: bool, save_scores: str | Path | None) -> None:
    if not models:
        raise ValueError("models: expected at least one, got none")
    if folds_only and fold_size is None:
        raise ValueError("folds_only: expected a fold_size with it, got None")
    if folds_only and save_scores is not None:
        raise ValueError("save_scores: expected all pairs to be scored, got folds_only=True")


def _counters(positives: Tensor, split: Split, fold_of_image: Tensor | None, folds_only: bool) -> dict[str, RankCounter]:
    """New counters of ranks: among all images, and within folds, as each is wanted."""
    arguments = positives, torch.from_numpy(split.image_of_caption), split.num_images
    full = {} if folds_only else {"full": RankCounter(*arguments)}
    return full if fold_of_image is None else full | {"folds": RankCounter(*arguments, fold_of_image)}


@dataclass
class _Passes:
    """The two passes over all units: the scores of captions with their own images, then the ranks.

    Attributes:
        scorer, units: what is scored, and in which pieces.
        folder: where finished units are kept; None keeps nothing.
        matrix: takes the scores, where they are wanted.
        processes, say, progress: as in `evaluate`.
        scored: pairs of the last pass that no earlier try had done.
    """

    scorer: Scorer
    units: list[Unit]
    folder: Path | None
    matrix: ScoreMatrix | None
    processes: Processes
    say: Callable[[str], None]
    progress: bool
    scored: int = 0

    @property
    def total(self) -> int:
        """Pairs of a pass."""
        return sum(unit.pairs for unit in self.units)

    def positives(self, captions: int) -> Tensor:
        """(T,) float32 on the CPU, each caption's score with its own image."""
        found = torch.zeros(captions, dtype=torch.float32, device="cpu")

        def add(loaded: Loaded) -> None:
            for own, scores in self.scorer.positives(loaded):
                found[own] = scores.cpu()

        # A sum of zeros and one score is that score.
        return self._sums("positives", {"positives": found}, add)["positives"]

    def counts(self, counters: dict[str, RankCounter]) -> dict[str, Tensor]:
        """What the counters count over all units, by name and part."""

        def add(loaded: Loaded) -> None:
            for images, scores in self.scorer.tiles(loaded):
                for counter in counters.values():
                    counter.add(scores, images, loaded.captions)
                if self.matrix:
                    self.matrix.write(images, loaded.captions, scores)

        counts = {f"{name}.{part}": tensor for name, counter in counters.items() for part, tensor in enumerate(counter.counts)}
        return self._sums("ranks", counts, add)

    def _sums(self, name: str, sums: dict[str, Tensor], add: Callable[[Loaded], None]) -> dict[str, Tensor]:
        """Have this process's share of the units add to the sums, and give those over all units."""
        kept = KeptSums(self.folder, name, sums, self.processes, self.matrix.flush if self.matrix else None)
        before = sum(self.units[number].pairs for number in kept.done)
        self.scored = self.total - before
        if kept.done and self.processes.first:
            self.say(f"continuing ({name}): {before:,} of {self.total:,} pairs were done, and kept in {self.folder}")
        mine = share([unit for unit in self.units if unit.number not in kept.done], self.processes)
        watch = bar(
            total=sum(unit.pairs for unit in mine),
            desc=name if self.processes.count == 1 else f"{name}, process 0 of {self.processes.count}",
            unit=" pairs",
            unit_scale=True,
            shown=self.progress and self.processes.first,
            leave=False,
        )
        with watch:
            for loaded in self.scorer.loaded(mine):
                add(loaded)
                kept.finish(loaded.unit.number)
                watch.update(loaded.unit.pairs)
        return kept.total()

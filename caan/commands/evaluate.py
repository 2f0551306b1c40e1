"""Score every image of a split against every caption, and print the recall table.

Several checkpoints are an ensemble: their scores are averaged. Stopped or killed, the same command continues; under torchrun, its
processes share the work.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..checkpoint import load_model
from ..data import Split
from ..evaluation import Evaluation, evaluate
from ..files import check_writable, replacing
from ..kept import forget
from ..processes import joined
from ..published import PROTOCOLS, SOURCE, TESTS, published_rows, why_not_comparable
from ..recall import chance, chance_limit
from ..settings import option
from ..vocabulary import Vocabulary, tokenize
from . import options

_FOLD_SIZE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run, or a checkpoint; several are an ensemble: scores are averaged",
    )
    options.add_data_options(parser)
    parser.add_argument("--split", default="test", metavar="NAME", help="default: test; COCO's 5,000 images: testall")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--protocol",
        choices=("full", "folds", "both"),
        default="full",
        help="full: every image competes with all captions (Flickr30K 1K, COCO 5K); "
        f"folds: mean over folds of {_FOLD_SIZE:,} images (COCO 1K); both: in one pass",
    )
    parser.add_argument(
        "--save-scores", type=Path, metavar="FILE", help="write the score matrix, images x captions, to this .npy file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--force", action="store_true", help="replace the file of --json if it exists")
    parser.add_argument(
        "--baseline",
        choices=PROTOCOLS,
        help="print published rows beside yours; for the test split of that data set only",
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and print."""
    device = options.device(arguments)
    if arguments.json and arguments.save_scores and arguments.json.absolute() == arguments.save_scores.absolute():
        raise ValueError(f"--json: expected another file than --save-scores, got {arguments.json} for both")
    for name in ("json", "save_scores"):
        if getattr(arguments, name):
            check_writable(option(name), getattr(arguments, name))
    if arguments.json and arguments.json.is_file() and not arguments.force:
        raise ValueError(f"--json: expected a file that is not there yet, got {arguments.json}; --force replaces it")
    loaded = [load_model(path) for path in arguments.runs]
    [whole] = options.load_splits(arguments, arguments.split)
    split = whole.first(arguments.limit)
    if arguments.protocol != "full" and split.num_images % _FOLD_SIZE:
        raise ValueError(
            f"--protocol: expected a whole number of folds of {_FOLD_SIZE:,} images for {arguments.protocol}, "
            f"found {split.num_images:,} images"
        )
    if arguments.baseline:
        _check_comparable(split, arguments)
    with joined(device) as processes:
        evaluation = evaluate(
            [(model, vocabulary) for model, vocabulary, _ in loaded],
            split,
            fold_size=None if arguments.protocol == "full" else _FOLD_SIZE,
            folds_only=arguments.protocol == "folds",
            save_scores=arguments.save_scores,
            keep=_keep(arguments.runs[0]),
            processes=processes,
            device=device,
            workers=arguments.workers,
            progress=True,
        )
        if processes.first:
            _tell(evaluation, [vocabulary for _, vocabulary, _ in loaded], split, whole.num_images, arguments)
        # If the first process could not write the figures, the others must not have forgotten them.
        processes.wait()
        forget(evaluation.kept)


def _keep(run: Path) -> Path | None:
    """Where finished work is kept: in the run's folder, or beside the checkpoint. Nothing is kept where nobody may write."""
    folder = run if run.is_dir() else run.absolute().parent
    if os.access(folder, os.W_OK):
        return folder
    print(f"{folder}: expected a folder that can be written to, found none; a stopped evaluation will begin anew", file=sys.stderr)
    return None


def _check_comparable(split: Split, arguments: argparse.Namespace) -> None:
    """See, before long work, that the published rows are of the same data, scored in the same way."""
    why = why_not_comparable(arguments.baseline, split.num_images, split.captions)
    if why is None:
        wanted = ("folds", "both") if TESTS[arguments.baseline].folds else ("full", "both")
        if arguments.protocol not in wanted:
            why = f"expected --protocol {' or '.join(wanted)} beside it, got {arguments.protocol}"
    if why:
        raise ValueError(
            f"--baseline {arguments.baseline}: {why}; published figures are printed beside figures of the same test only"
        )


def _tell(evaluation: Evaluation, vocabularies: Sequence[Vocabulary], split: Split, of: int, arguments: argparse.Namespace) -> None:
    """Print the table, and write the figures where they are asked for."""
    warning = _chance_warning(evaluation, vocabularies, split)
    print(report(evaluation, split, of, arguments.baseline))
    if warning:
        print(warning)
    if not arguments.json:
        return
    found = asdict(evaluation)
    del found["kept"]
    for name in ("figures", "fold_figures"):
        if found[name]:
            found[name]["rsum"] = getattr(evaluation, name).rsum
    what = {
        "runs": [str(path) for path in arguments.runs],
        "data": str(arguments.data),
        "split": split.name,
        "limit": arguments.limit,
        "images": split.num_images,
        "split_images": of,
        "captions": len(split.captions),
        "protocol": arguments.protocol,
        "fold_size": _FOLD_SIZE if evaluation.fold_figures else None,
    }
    with replacing(arguments.json) as unfinished:
        unfinished.write_text(json.dumps({**what, **found, "warning": warning}, indent=1) + "\n")


def _chance(evaluation: Evaluation, split: Split) -> tuple[torch.Tensor, int]:
    """What `chance` is to be told: of the whole split, or of a fold where there are only figures of folds."""
    part = split if evaluation.figures else split.first(_FOLD_SIZE)
    return torch.from_numpy(part.image_of_caption), part.num_images


def _chance_warning(evaluation: Evaluation, vocabularies: Sequence[Vocabulary], split: Split) -> str | None:
    """What to say where the figures are those of scores without meaning."""
    figures = evaluation.figures or evaluation.fold_figures
    if figures.rsum > chance_limit(*_chance(evaluation, split), split.num_images):
        return None
    words = [word for caption in split.captions for word in tokenize(caption)]
    known = min(sum(word in vocabulary for word in words) / max(1, len(words)) for vocabulary in vocabularies)
    return (
        f"Warning: random scores can have rsum {figures.rsum:.1f}. The vocabulary knows {known:.0%} of the captions' words: is it "
        "of their language? Are the features of the same backbone and size as in training? Did the model train on enough captions?"
    )


def report(evaluation: Evaluation, split: Split, of: int | None = None, baseline: str | None = None) -> str:
    """The recall table as text.

    Args:
        evaluation: what was found.
        split: where.
        of: images that the split has without a limit; None: those of `split`.
        baseline: the protocol whose published rows are printed too.
    """
    whole = of in (None, split.num_images)
    images = f"{split.num_images:,} images" if whole else f"first {split.num_images:,} of {of:,} images"
    found = {
        f"{images}, {len(split.captions):,} captions": evaluation.figures,
        f"{images}, mean of folds of {_FOLD_SIZE:,}": evaluation.fold_figures,
    }
    found = {name: figures for name, figures in found.items() if figures}
    others = [("by chance" if evaluation.figures else "by chance, in a fold", *chance(*_chance(evaluation, split)))]
    if baseline:
        for row in published_rows(baseline):
            name = f"{row.method}{'*' if row.ensemble else ''}, {PROTOCOLS[baseline]}"
            others.append((name, row.image_to_text, row.text_to_image))
    width, side_width = max(map(len, (*found, *(name for name, *_ in others)))) + 2, 38
    lines = [f"{split.name:{width}}{'image → text':^{side_width}}  {'text → image':^{side_width}}"]
    heads = "".join(f"{head:>7}" for head in ("R@1", "R@5", "R@10")) + f"{'median':>8}{'mean':>9}"
    lines.append(f"{'':{width}}{heads:{side_width}}  {heads:{side_width}}{'rsum':>7}")
    for name, figures in found.items():
        sides = (f"{_recalls((s.r1, s.r5, s.r10))}{s.median_rank:8g}{s.mean_rank:9,.1f}" for s in figures.sides)
        lines.append(f"{name:{width}}{'  '.join(f'{side:{side_width}}' for side in sides)}{figures.rsum:7.1f}")
    for name, *recalls in others:
        sides = "  ".join(f"{_recalls(side):{side_width}}" for side in recalls)
        lines.append(f"{name:{width}}{sides}{sum(map(sum, recalls)):7.1f}")
    if baseline:
        lines.append(f"Published: {SOURCE}; * an ensemble of two models.")
    for name, figures in found.items():
        if any(side.tied_queries for side in figures.sides):
            by_image, by_text = (f"{side.tied_queries:g}" for side in figures.sides)
            lines.append(f"Ties lowered the rank of {by_image} images and {by_text} captions: {name}")
    rate = evaluation.scored / evaluation.seconds
    of_this_try = f", {evaluation.scored:,} of them" if evaluation.scored < evaluation.pairs else ""
    time = f"{evaluation.seconds:,.1f} s, reading and encoding included"
    lines.append(f"{evaluation.pairs:,} pairs{of_this_try} in {time}: {rate:,.0f} pairs/s")
    return "\n".join(lines)


def _recalls(values: Iterable[float]) -> str:
    return "".join(f"{value:7.1f}" for value in values)

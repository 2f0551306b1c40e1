"""Score every image of a split against every caption, and print the field's recall table.

Several checkpoints are an ensemble: their scores are averaged. Stopped or killed, the same command continues; under torchrun, its
processes share the work.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from ..checkpoint import load_model
from ..data import Split
from ..evaluation import Evaluation, evaluate
from ..files import check_writable, replacing
from ..kept import forget
from ..processes import joined
from ..published import PROTOCOLS, SOURCE, published_rows
from ..recall import chance
from . import options

_FOLD_SIZE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or a checkpoint; two or more: an ensemble"
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
    parser.add_argument(
        "--baseline",
        choices=PROTOCOLS,
        help="print what others have published on this test beside",
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and print."""
    device = options.device(arguments)
    if arguments.json and arguments.save_scores and arguments.json.absolute() == arguments.save_scores.absolute():
        raise ValueError(f"--json: expected another file than --save-scores, got {arguments.json} for both")
    for name in ("json", "save_scores"):
        if getattr(arguments, name):
            check_writable(f"--{name.replace('_', '-')}", getattr(arguments, name))
    loaded = [load_model(path) for path in arguments.runs]
    [split] = options.load_splits(arguments, arguments.split, limit=arguments.limit)
    if arguments.protocol != "full" and split.num_images % _FOLD_SIZE:
        raise ValueError(
            f"--protocol: expected a whole number of folds of {_FOLD_SIZE:,} images for {arguments.protocol}, "
            f"found {split.num_images:,} images"
        )
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
            _tell(evaluation, split, arguments)
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


def _tell(evaluation: Evaluation, split: Split, arguments: argparse.Namespace) -> None:
    """Print the table, and write the figures where they are asked for."""
    print(report(evaluation, split, arguments.baseline))
    if arguments.json:
        result = asdict(evaluation)
        del result["kept"]
        for name in ("figures", "fold_figures"):
            if result[name]:
                result[name]["rsum"] = getattr(evaluation, name).rsum
        of = {"runs": [str(path) for path in arguments.runs], "data": str(arguments.data), "split": split.name}
        with replacing(arguments.json) as unfinished:
            unfinished.write_text(json.dumps({**of, "protocol": arguments.protocol, **result}, indent=1) + "\n")


def report(evaluation: Evaluation, split: Split, baseline: str | None = None) -> str:
    """The recall table as text.

    Args:
        evaluation: what was found.
        split: where.
        baseline: the protocol whose published rows are printed too.
    """
    name_width, side_width = 34, 38
    lines = [f"{'':{name_width}}{'image → text':^{side_width}}  {'text → image':^{side_width}}"]
    heads = "".join(f"{head:>7}" for head in ("R@1", "R@5", "R@10")) + f"{'median':>8}{'mean':>9}"
    lines.append(f"{'':{name_width}}{heads:{side_width}}  {heads:{side_width}}{'rsum':>7}")
    found = {
        f"{split.num_images:,} images, {len(split.captions):,} captions": evaluation.figures,
        f"mean of {split.num_images // _FOLD_SIZE} folds of {_FOLD_SIZE:,} images": evaluation.fold_figures,
    }
    for name, figures in found.items():
        if figures:
            sides = (f"{_recalls((s.r1, s.r5, s.r10))}{s.median_rank:8g}{s.mean_rank:9,.1f}" for s in figures.sides)
            lines.append(f"{name:{name_width}}{'  '.join(f'{side:{side_width}}' for side in sides)}{figures.rsum:7.1f}")
    others = []
    if evaluation.figures:
        others.append(("by chance", *chance(torch.from_numpy(split.image_of_caption), split.num_images)))
    if baseline:
        for row in published_rows(baseline):
            name = f"{row.method}{'*' if row.ensemble else ''}, {PROTOCOLS[baseline]}"
            others.append((name, row.image_to_text, row.text_to_image))
    for name, *recalls in others:
        sides = "  ".join(f"{_recalls(side):{side_width}}" for side in recalls)
        lines.append(f"{name:{name_width}}{sides}{sum(map(sum, recalls)):7.1f}")
    if baseline:
        lines.append(f"Published: {SOURCE}; * an ensemble of two models.")
    for name, figures in found.items():
        if figures and any(side.tied_queries for side in figures.sides):
            tied = " and ".join(f"{side.tied_queries:g}" for side in figures.sides)
            lines.append(f"Ties, which count as lost places, cost {tied} queries (image → text and text → image) a place: {name}")
    rate = evaluation.scored / evaluation.seconds
    of_this_try = f", {evaluation.scored:,} of them" if evaluation.scored < evaluation.pairs else ""
    time = f"{evaluation.seconds:,.1f} s, reading and encoding included"
    lines.append(f"{evaluation.pairs:,} pairs{of_this_try} in {time}: {rate:,.0f} pairs/s")
    return "\n".join(lines)


def _recalls(values: Iterable[float]) -> str:
    return "".join(f"{value:7.1f}" for value in values)

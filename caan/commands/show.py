"""Make pictures of a model: what it attends to in a pair, how its training went, what it retrieves.

Each is one PNG, or one HTML page that needs nothing else.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint import load_model
from ..data import Split, read_record
from ..files import check_writable, replacing
from ..photographs import Unreadable
from ..text import normalised, shown
from . import images, options

if TYPE_CHECKING:
    from PIL import Image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    kinds = parser.add_subparsers(required=True, dest="kind", metavar="what")
    pair = _add_kind(kinds, "pair", "where the regions of an image and the words of a caption attend")
    _add_data(pair)
    images.add_backbone_options(pair)
    pair.add_argument("--image", required=True, metavar="IMAGE", help=images.HELP)
    caption = pair.add_mutually_exclusive_group()
    caption.add_argument(
        "--caption", type=options.count, default=0, metavar="N", help="which of the image's captions, counted from 0 (0)"
    )
    caption.add_argument("--text", help="a caption of your own; needed for a photograph's file")
    _add_out(pair, "PNG or HTML")

    training = _add_kind(kinds, "training", "loss, gradients and validation of one run, or of several runs")
    training.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    _add_out(training, "PNG or HTML")

    retrieval = _add_kind(kinds, "retrieval", "a page of queries and their results")
    _add_data(retrieval)
    retrieval.add_argument("--limit", type=int, metavar="N", help="search only the first N images")
    retrieval.add_argument("--queries", type=int, default=8, metavar="N", help="how many queries, spread over the split (8)")
    retrieval.add_argument("--top", type=int, default=5, metavar="N", help="how many results of each query (5)")
    retrieval.add_argument(
        "--direction",
        choices=("text", "image"),
        default="text",
        help="what the queries are: text, which finds images (default), or image, which finds captions",
    )
    _add_out(retrieval, "HTML")


def _add_kind(kinds: Any, name: str, what: str) -> argparse.ArgumentParser:
    return kinds.add_parser(name, help=what, description=f"Draw {what}.", allow_abbrev=False)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    options.add_data_options(parser)
    parser.add_argument("--split", default="test", metavar="NAME", help="default: test")
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="folder of the photographs; default: the one that caan extract has noted"
    )


def _add_out(parser: argparse.ArgumentParser, kinds: str) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"the picture: {kinds}, by the ending of its name")


def run(arguments: argparse.Namespace) -> None:
    """Draw and write."""
    endings = (".html",) if arguments.kind == "retrieval" else (".png", ".html")
    if arguments.out.suffix.lower() not in endings:
        raise ValueError(f"--out: expected a file that ends in {' or '.join(endings)}, got {arguments.out}")
    check_writable("--out", arguments.out)
    {"pair": _pair, "training": _training, "retrieval": _retrieval}[arguments.kind](arguments)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:,.0f} kB")


def _pair(arguments: argparse.Namespace) -> None:
    # Matplotlib takes a second to import, which --help need not wait for.
    from ..attention import RegionBoxes, explain
    from ..attention.figure_page import Table
    from ..attention.figures import pair_figure

    if arguments.text is not None and not normalised(arguments.text, "--text").strip():
        raise ValueError("--text: expected words, got none")
    device = options.device(arguments)
    model, vocabulary, _ = load_model(arguments.checkpoint)
    with _asked(arguments) as (split, image, photograph):
        boxes = RegionBoxes(split)
        caption = _own_caption(split, image, arguments.caption) if arguments.text is None else arguments.text
        [pair] = explain(model, vocabulary, split, [(image, caption)], device=device, boxes=boxes)
    places = f"; boxes assumed: a grid of {boxes.assumed} x {boxes.assumed}" if boxes.assumed else ""
    lead = f"Score {pair.score:.4f}; {len(pair.boxes)} regions, {len(pair.words)} words{places}."
    tables = [
        Table(
            "Words: g, and the region each looks at most",
            ("word", "g", "region"),
            [
                (word, float(weight), _most(column, range(len(column))))
                for word, weight, column in zip(pair.words, pair.word_attention, pair.word_to_region.T, strict=True)
            ],
        ),
        Table(
            "Regions: f, and the word each looks at most",
            ("region", "f", "word"),
            [
                (number, float(weight), _most(column, pair.words))
                for number, (weight, column) in enumerate(zip(pair.region_attention, pair.region_to_word.T, strict=True))
            ],
            open=False,
        ),
        Table(
            "C, a word's weights over the regions",
            ("word", *range(len(pair.boxes))),
            [(word, *map(float, column)) for word, column in zip(pair.words, pair.word_to_region.T, strict=True)],
            open=False,
        ),
    ]
    _write(arguments.out, f"{pair.image_id}: {pair.caption}", lead, partial(pair_figure, pair, photograph), tables)


@contextmanager
def _asked(arguments: argparse.Namespace) -> "Iterator[tuple[Split, int, Image.Image | None]]":
    """The image that is asked for: its split, its number there, and its photograph where there is one."""
    prefix, colon, _ = arguments.image.partition(":")
    # Only where it does not name a path.
    if colon and Path(prefix).name == prefix and (arguments.data / f"{prefix}_ims.npy").is_file():
        arguments.split = prefix
    [split] = options.load_splits(arguments, arguments.split, need_captions=False)
    place = f"{split.name} in {arguments.data}"
    number = images.find_image(arguments.image, split.ids, [(split.name, split.num_images)], place)
    record = read_record(arguments.data, split.name)
    if number is not None:
        yield split, number, _photograph(arguments.photos, record and record.photos, split.ids[number])
        return
    if arguments.text is None:
        raise ValueError(f"--text: expected a caption of your own for a photograph's file, {shown(arguments.image)}, got none")
    photograph = _opened(Path(arguments.image))
    made_by = images.made_by(arguments, record and record.made_by)
    with images.photograph_split(arguments.image, made_by, place) as own:
        yield own, 0, photograph


def _own_caption(split: Split, image: int, wanted: int) -> int:
    """The number in the split of one of an image's own captions."""
    own = np.flatnonzero(split.image_of_caption == image)
    if not len(own):
        raise ValueError(f"--text: expected a caption of your own, since {split.name} has no captions, got none")
    if wanted >= len(own):
        raise ValueError(f"--caption: expected 0 to {len(own) - 1}, the captions of {split.ids[image]}, got {wanted}")
    return int(own[wanted])


def _photograph(given: Path | None, noted: Path | None, image_id: str) -> "Image.Image | None":
    """An image's photograph; None where --photos is not given and none is found where it is noted."""
    folder = images.photo_folder(given, noted)
    if folder is None:
        return None
    try:
        path = folder.find(image_id)
    except Unreadable as error:
        raise ValueError(f"{image_id}: {error}") from None
    if path is None:
        raise ValueError(f"--photos: expected a photograph of {image_id}, found none; there: {', '.join(folder.examples())}")
    return _opened(path)


def _opened(path: Path) -> "Image.Image":
    from ..extraction import read_photograph

    try:
        return read_photograph(path)
    except Unreadable as error:
        raise ValueError(f"{path}: expected a photograph: {error}") from None


def _most(weights: np.ndarray, items: Sequence[object]) -> object:
    """The item with the largest weight. A word or region without a positive alignment looks at nothing."""
    return items[int(weights.argmax())] if weights.any() else "none"


def _training(arguments: argparse.Namespace) -> None:
    from ..attention.figure_page import Table
    from ..attention.figures import EPOCH, comparison_figure, read_metrics, training_figure, validated_on

    if len(set(arguments.runs)) < len(arguments.runs):
        raise ValueError(f"RUN: expected each run once, got {' '.join(map(str, arguments.runs))}")
    names = ("epoch", *EPOCH)
    runs = {str(run): read_metrics(run) for run in arguments.runs}
    leads, tables = [], []
    for run, rows in runs.items():
        validated = [row for row in rows if "rsum" in row]
        images = validated_on(validated[-1]) if validated else ""
        leads.append(f"{run}: {rows[-1]['epoch']:g} epochs, {len(validated)} validations{images}.")
        table = [tuple(row[name] for name in names) for row in validated]
        tables.append(Table(f"Epochs of {run}: validation, gradients", names, table, open=len(runs) == 1))
    draw = partial(training_figure, *runs.values()) if len(runs) == 1 else partial(comparison_figure, runs)
    _write(arguments.out, f"Training of {', '.join(run.name for run in arguments.runs)}", " ".join(leads), draw, tables)


def _write(out: Path, title: str, lead: str, draw: Callable[[], Any], tables: list[Any]) -> None:
    from ..attention.figure_page import write_figure_page
    from ..attention.figures import to_png

    if out.suffix.lower() == ".html":
        write_figure_page(out, title, lead, draw, tables)
        return
    with replacing(out) as unfinished:
        unfinished.write_bytes(to_png(draw))


def _retrieval(arguments: argparse.Namespace) -> None:
    from ..attention import RegionBoxes, explain
    from ..attention.retrieval_page import Answer, Hit, write_retrieval_page
    from ..ranking import score_some

    for name in ("queries", "top"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    device = options.device(arguments)
    model, vocabulary, _ = load_model(arguments.checkpoint)
    [split] = options.load_splits(arguments, arguments.split, limit=arguments.limit)
    record = read_record(arguments.data, split.name)
    folder = images.photo_folder(arguments.photos, record and record.photos)
    # Without photographs nothing is drawn, and where regions are need not be known.
    boxes = RegionBoxes(split) if folder else [np.zeros((count, 4), np.float32) for count in split.region_counts]
    of_text = arguments.direction == "text"
    asking, asked = np.arange(len(split.captions)), np.arange(split.num_images)
    if not of_text:
        asking, asked = asked, asking
    asking = asking[np.unique(np.linspace(0, len(asking) - 1, arguments.queries).round().astype(int))]
    sides = (asked, asking) if of_text else (asking, asked)
    scores = score_some(model, vocabulary, split, *sides, device=device, workers=arguments.workers, progress=True).numpy()
    scores = scores.T if of_text else scores

    answers = []
    for query, row in zip(asking.tolist(), scores, strict=True):
        best = np.argsort(-row, kind="stable")[: arguments.top].tolist()
        pairs = [(item, query) if of_text else (query, item) for item in best]
        hits = [
            Hit(
                split.ids[item] if of_text else split.captions[item],
                float(row[item]),
                pair.right,
                folder.look_up(pair.image_id) if folder and of_text else None,
                list(zip(pair.words, pair.word_attention.tolist(), strict=True)),
                list(zip(pair.boxes.tolist(), pair.region_attention.tolist(), strict=True)) if folder and of_text else (),
            )
            for item, pair in zip(best, explain(model, vocabulary, split, pairs, device=device, boxes=boxes), strict=True)
        ]
        right = split.image_of_caption[query] == asked if of_text else split.image_of_caption == query
        note = "it has no right answer"
        if right.any():
            # A tie is a lost place, as in `caan evaluate`.
            place = 1 + int((row[~right] >= row[right].max()).sum())
            note = f"its {'image' if of_text else 'best own caption'} is in place {place:,} of {len(row):,}"
        name = split.captions[query] if of_text else split.ids[query]
        answers.append(Answer(name, hits, folder.look_up(split.ids[query]) if folder and not of_text else None, note))
    where = f"the first {arguments.limit:,} images of {arguments.split}" if arguments.limit else arguments.split
    title = f"{arguments.checkpoint.name} on {where}: {'text → image' if of_text else 'image → text'}"
    write_retrieval_page(arguments.out, title, answers)

"""Project a gallery once and store it, for `caan search`.

A second split is added to an index by naming the same --out. Stopped or killed, the same command continues.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..checkpoint import load_model
from . import options

_LENGTHS = (50, 100, 200, 500)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("checkpoint", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    options.add_data_options(parser)
    parser.add_argument("--split", default="test", metavar="NAME", help="default: test")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--check",
        type=options.count,
        default=0,
        metavar="N",
        help="then rank exactly for N captions and N images of the index, and print how much of that shortlists hold",
    )


def run(arguments: argparse.Namespace) -> None:
    """Build, and check."""
    # faiss need not be there for --help.
    from ..gallery import Searcher, build_index, shortlist_recall

    device = options.device(arguments)
    model, vocabulary, _ = load_model(arguments.checkpoint)
    split = options.load_split(arguments, arguments.split, arguments.limit)
    backbone = None
    record = arguments.data / f"{arguments.split}_extract.json"
    if record.is_file():
        settings = json.loads(record.read_text(encoding="utf-8"))["settings"]
        backbone = {name: settings[name] for name in ("backbone", "size") if name in settings} or None
    build_index(
        arguments.out,
        model.to(device),
        vocabulary,
        arguments.checkpoint,
        split,
        data=arguments.data,
        backbone=backbone,
        progress=True,
    )
    searcher = Searcher(arguments.out, arguments.checkpoint, device)
    gallery = searcher.gallery
    size = sum(path.stat().st_size for path in arguments.out.glob("segment-*/*"))
    print(
        f"{arguments.out}: {len(gallery.image_vectors):,} images, {len(gallery.caption_vectors):,} captions, {size / 1e6:,.0f} MB"
    )
    if not arguments.check:
        return
    sides = (
        ("text → image", searcher.caption, gallery.caption_vectors, gallery.image_vectors),
        ("image → text", searcher.image, gallery.image_vectors, gallery.caption_vectors),
    )
    for name, query, askers, asked in sides:
        chosen = np.random.default_rng(0).permutation(len(askers))[: arguments.check]
        queries = [query(number) for number in tqdm(chosen, desc=name, unit=" queries", leave=False)]
        recall = shortlist_recall(searcher, queries, _LENGTHS)
        print(f"{name}, {len(queries)} queries: of the exact best 1, 5 and 10 among {len(asked):,}, in the shortlist")
        for length, by_top in recall.items():
            print(f"  shortlist of {length:4}" + "".join(f"{value:8.1f}%" for value in by_top.values()))

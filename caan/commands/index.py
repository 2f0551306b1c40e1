"""Project a gallery once and store it, for `caan search`.

To add a second split to a gallery, give the same --out. A split without captions is searched by text and by image. If the command
is stopped or killed, it continues when it is given again.
"""

import argparse
from pathlib import Path

import numpy as np

from ..checkpoint import load_model
from ..data import read_record
from ..progress import bar
from . import images, options

_LENGTHS = (50, 100, 200, 500)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("checkpoint", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    options.add_data_options(parser)
    parser.add_argument("--split", default="test", metavar="NAME", help="default: test")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    # Errors begin with what they are about, and this is the word of what writes there.
    parser.add_argument("--out", dest="folder", type=Path, required=True, metavar="GALLERY", help="folder of the gallery")
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="folder of the photographs; default: the one that caan extract has noted"
    )
    images.add_backbone_options(parser)
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--replace", action="store_true", help="if the split has changed since it was added, take the old one out first"
    )
    change.add_argument("--drop", action="store_true", help="take the split out of the gallery, and nothing else")
    parser.add_argument(
        "--check",
        type=options.count,
        default=0,
        metavar="N",
        help="then rank exactly for N captions and N images, and print how many of the exact best are in shortlists",
    )


def run(arguments: argparse.Namespace) -> None:
    """Build, and check."""
    # faiss need not be there for --help.
    from ..gallery import Searcher, build_index, drop_split, shortlist_recall

    if arguments.drop:
        drop_split(arguments.folder, arguments.data, arguments.split)
        print(f"{arguments.folder}: {arguments.split} of {arguments.data} is out")
        return
    device = options.device(arguments)
    model, vocabulary, _ = load_model(arguments.checkpoint)
    [split] = options.load_splits(arguments, arguments.split, limit=arguments.limit, need_captions=False)
    if not split.captions:
        print(f"{split.name}: no captions: only its images can be found")
    record = read_record(arguments.data, arguments.split)
    build_index(
        arguments.folder,
        model.to(device),
        vocabulary,
        arguments.checkpoint,
        split,
        data=arguments.data,
        backbone=record and record.made_by,
        named=images.named(arguments),
        replace=arguments.replace,
        progress=True,
    )
    searcher = Searcher(arguments.folder, arguments.checkpoint, device)
    gallery = searcher.gallery
    size = sum(path.stat().st_size for path in arguments.folder.glob("segment-*/*"))
    print(
        f"{arguments.folder}: {len(gallery.image_vectors):,} images, {len(gallery.caption_vectors):,} captions, "
        f"{size / 1e6:,.0f} MB"
    )
    if not arguments.check:
        return
    sides = (
        ("text → image", searcher.caption, gallery.caption_vectors, gallery.image_vectors),
        ("image → text", searcher.image, gallery.image_vectors, gallery.caption_vectors),
    )
    for name, query, askers, asked in sides:
        if not len(gallery.caption_vectors):
            print(f"{name}: not checked, the gallery has no captions")
            continue
        chosen = np.random.default_rng(0).permutation(len(askers))[: arguments.check]
        queries = [query(number) for number in bar(chosen, desc=name, unit=" queries", leave=False)]
        # No shortlist is longer than what it is taken of.
        recall = shortlist_recall(searcher, queries, sorted({min(length, len(asked)) for length in _LENGTHS}))
        print(f"{name}, {len(queries)} queries: of the exact best 1, 5 and 10 among {len(asked):,}, in the shortlist")
        for length, by_top in recall.items():
            print(f"  shortlist of {length:4}" + "".join(f"{value:8.1f}%" for value in by_top.values()))

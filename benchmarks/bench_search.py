"""How long a search takes in a gallery of many images, and which stage takes it.

    python benchmarks/bench_search.py runs/f8k --data data/f8k_precomp --split dev --scratch /tmp/gallery

The split's images are put into an index as often as it takes; every copy has bytes of its own on the disk, 83 KB an image at
D = 448 and H = 64. Cold: the files were put out of the page cache before each query.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from caan.checkpoint import load_model
from caan.data import load_scan_split
from caan.gallery import Contents, Searcher, build_index

_TEXTS = 40


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--scratch", type=Path, required=True, help="a new folder, removed at the end")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--shortlist", type=int, default=200)
    arguments = parser.parse_args(given)
    if arguments.scratch.exists():
        parser.error(f"--scratch: expected a folder that is not there yet, got {arguments.scratch}")
    try:
        return measure(arguments)
    finally:
        shutil.rmtree(arguments.scratch, ignore_errors=True)


def measure(arguments: argparse.Namespace) -> int:
    """Make the index, search in it, and print a table."""
    model, vocabulary, _ = load_model(arguments.run)
    split = load_scan_split(arguments.data, arguments.split)
    texts = [split.captions[number] for number in np.linspace(0, len(split.captions) - 1, _TEXTS, dtype=int)]
    images_only = replace(split, captions=[], image_of_caption=split.image_of_caption[:0])
    build_index(arguments.scratch, model, vocabulary, arguments.run, images_only)
    repeat(arguments.scratch, arguments.images)
    begin = time.perf_counter()
    searcher = Searcher(arguments.scratch, arguments.run)
    opened = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in arguments.scratch.glob("segment-*/*"))
    print(f"{len(searcher.gallery.image_vectors):,} images, {size / 1e9:.1f} GB; opened in {opened:.2f} s; {_TEXTS} texts")

    print(f"{'milliseconds, median (5th to 95th percentile)':48}{'total':>22}{'encode':>8}{'shortlist':>10}{'read':>8}{'score':>8}")
    for name, cold in (("page cache cold", True), ("page cache warm", False)):
        rows = []
        for text in texts:
            if cold:
                forget_pages(arguments.scratch)
            else:
                searcher.search(searcher.text(text), 10, arguments.shortlist)
            begin = time.perf_counter()
            query = searcher.text(text)
            encoded = time.perf_counter() - begin
            hits = searcher.search(query, 10, arguments.shortlist)
            rows.append((time.perf_counter() - begin, encoded, *hits.seconds.values()))
        total, *stages = ([1000 * value for value in column] for column in zip(*rows, strict=True))
        low, high = np.percentile(total, (5, 95))
        spread = f"{statistics.median(total):.0f} ({low:.0f} to {high:.0f})"
        medians = "".join(f"{statistics.median(stage):{width}.1f}" for stage, width in zip(stages, (8, 10, 8, 8), strict=True))
        print(f"{f'shortlist of {arguments.shortlist}, {name}':48}{spread:>22}{medians}")
    return 0


def repeat(folder: Path, images: int) -> None:
    """Copy an index's segments until it has so many images."""
    contents = Contents.read(folder)
    [source] = contents.sources
    originals = list(source.segments)
    while source.finished < images:
        segment = originals[len(source.segments) % len(originals)]
        name = f"segment-{len(source.segments):05d}"
        shutil.copytree(folder / segment["folder"], folder / name)
        source.segments.append({**segment, "folder": name})
    source.images = source.finished
    contents.write(folder)
    os.sync()


def forget_pages(folder: Path) -> None:
    """Have the page cache drop the files of an index."""
    for path in folder.glob("segment-*/*.npy"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())

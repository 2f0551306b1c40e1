"""Search a gallery that `caan index` has stored: images for a text, captions for an image.

A shortlist by pooled vectors is put in order by the operator; --exact scores everything.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import FormatError
from ..files import check_writable, read_text, replacing
from ..photographs import PhotoFolder
from ..text import normalised, shown
from ..vocabulary import tokenize
from . import options

_SHORTLIST = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder that caan index has made")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("text", nargs="?", help="search images for this text")
    what.add_argument(
        "--image", metavar="ID", help="search captions for this image of the gallery (ID, or SPLIT:ID), or for a photograph's file"
    )
    what.add_argument("--queries", type=Path, metavar="FILE", help="search images for each line of a file; results in JSON lines")
    what.add_argument("--interactive", action="store_true", help="ask for texts until Ctrl-D")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many are shown (10)")
    parser.add_argument(
        "--shortlist", type=int, metavar="N", help="how many the operator puts in order (200, or --top where that is more)"
    )
    parser.add_argument("--exact", action="store_true", help="score everything")
    parser.add_argument("--run", dest="checkpoint", type=Path, metavar="RUN", help="where the index's model is now")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the result to this file; -: to the screen, and nothing else"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the pictures to this file")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder of the photographs, for --html")
    options.add_device_option(parser)


def run(arguments: argparse.Namespace) -> None:
    """Search and print."""
    # faiss need not be there for --help.
    from ..gallery import Searcher

    if arguments.top < 1:
        raise ValueError(f"--top: expected at least 1, got {arguments.top}")
    if arguments.shortlist is None:
        arguments.shortlist = max(_SHORTLIST, arguments.top)
    if not arguments.exact and arguments.shortlist < arguments.top:
        raise ValueError(f"--shortlist: expected at least the {arguments.top} of --top, got {arguments.shortlist}")
    for name in ("json", "html"):
        path = getattr(arguments, name)
        if arguments.interactive and path:
            raise ValueError(f"--{name}: expected without --interactive, got both")
        if path and str(path) != "-":
            check_writable(f"--{name}", path)
    files = [path.absolute() for path in (arguments.json, arguments.html, arguments.queries) if path]
    if len(set(files)) < len(files):
        raise ValueError(f"--json, --html, --queries: expected different files, got {', '.join(map(str, files))}")
    texts = _lines(arguments.queries) if arguments.queries else [arguments.text]
    if arguments.text is not None and not normalised(arguments.text, "text").strip():
        raise ValueError("text: expected words, got none")
    folder = PhotoFolder(arguments.photos) if arguments.html and arguments.photos else None
    searcher = Searcher(arguments.index, arguments.checkpoint, options.device(arguments))
    gallery = searcher.gallery
    for source in gallery.unfinished:
        found = f"{source.finished:,} of its {source.images:,} images"
        print(f"{source.name}: left out, the index has {found}; the same caan index command brings the rest", file=sys.stderr)
    if not arguments.json and not arguments.queries:
        print(f"{len(gallery.image_vectors):,} images, {len(gallery.caption_vectors):,} captions in {arguments.index}")
    if arguments.interactive:
        for text in _prompted():
            try:
                print(_table(_answer(searcher, arguments, text)))
            except ValueError as error:
                print(error)
        return
    results = []
    with _output(arguments) as write:
        for text in tqdm(texts, unit=" queries", dynamic_ncols=True) if arguments.queries else texts:
            results.append(_answer(searcher, arguments, text))
            write(json.dumps(results[-1], indent=None if arguments.queries else 1, ensure_ascii=False) + "\n")
    if not arguments.queries and str(arguments.json) != "-":
        print(_table(results[0]))
    if arguments.html:
        _write_page(searcher, arguments, results, folder)


@contextmanager
def _output(arguments: argparse.Namespace) -> Iterator[Callable[[str], Any]]:
    """Takes the results as text, each when it is found."""
    if arguments.json and str(arguments.json) != "-":
        with replacing(arguments.json) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            yield file.write
    elif arguments.json or arguments.queries:
        yield partial(print, end="", flush=True)
    else:
        yield lambda text: None


def _write_page(searcher, arguments: argparse.Namespace, results: list[dict[str, Any]], folder: PhotoFolder | None) -> None:
    """The results as a page: photographs where they are known, and the words that decided."""
    from ..attention.retrieval_page import Answer, Hit, write_retrieval_page

    answers = []
    for result in results:
        words = [()] * len(result["hits"])
        if "text" in result:
            query = searcher.text(result["text"])
            images = np.array([hit["number"] for hit in result["hits"]])
            marked = ["<start>", *tokenize(result["text"]), "<end>"]
            words = [list(zip(marked, row.tolist(), strict=True)) for row in searcher.word_attention(query, images)]
        hits = [
            Hit(
                hit.get("caption", hit["name"]),
                hit["score"],
                photograph=folder.look_up(hit["image"]) if folder and "text" in result else None,
                words=own,
            )
            for hit, own in zip(result["hits"], words, strict=True)
        ]
        asked = result.get("image", "")
        photograph = None
        if "number" in result:
            photograph = folder and folder.look_up(searcher.gallery.ids[result["number"]])
        elif asked:
            photograph = Path(arguments.image)
        note = f"{result['scored']:,} of {result['gallery']:,} scored"
        answers.append(Answer(result.get("text", asked), hits, photograph, note))
    write_retrieval_page(arguments.html, f"Search in {arguments.index.name}", answers)


def _answer(searcher, arguments: argparse.Namespace, text: str | None) -> dict[str, Any]:
    """One query with what it found, in types that JSON has."""
    gallery = searcher.gallery
    if text is not None:
        text = normalised(text, "text")
    asked: dict[str, Any] = {"text": text} if text is not None else {"image": shown(arguments.image)}
    if text is None:
        number = _find_image(gallery, arguments.image)
        if number is not None:
            asked |= {"number": number, **_origin(gallery, number)}
    begin = time.perf_counter()
    if text is not None:
        query = searcher.text(text)
    else:
        query = _photograph_query(searcher, arguments.image) if number is None else searcher.image(number)
    encoded = time.perf_counter() - begin
    if query.unknown:
        asked["unknown"] = query.unknown
        none_known = len(query.unknown) == len(tokenize(text))
        advice = "; it knows none of this text: write it in the training's language, its words between spaces" if none_known else ""
        print(f"words that the model does not know: {', '.join(query.unknown)}{advice}", file=sys.stderr)
    hits = searcher.search(query, arguments.top, None if arguments.exact else arguments.shortlist)
    found = []
    for place, (item, score) in enumerate(zip(hits.items.tolist(), hits.scores.tolist(), strict=True), 1):
        number = item if query.wants_images else int(gallery.image_of_caption[item])
        hit = {"place": place, "score": score, "image": gallery.ids[number], "number": number, **_origin(gallery, number)}
        hit["name"] = hit["image"] if len(gallery.sources) == 1 else f"{hit['split']}:{hit['image']}"
        if not query.wants_images:
            hit["caption"] = gallery.captions[item]
        found.append(hit)
    of = len(gallery.image_vectors if query.wants_images else gallery.caption_vectors)
    scored = of if arguments.exact else min(arguments.shortlist, of)
    seconds = {"encode": encoded, **hits.seconds}
    return {**asked, "gallery": of, "scored": scored, "seconds": seconds, "hits": found}


def _origin(gallery, number: int) -> dict[str, str]:
    """Where an image of the gallery is from."""
    source = gallery.source_of(number)
    return {"split": source.split, "data": source.data}


def _find_image(gallery, name: str) -> int | None:
    """An image of the gallery by its id, with its split before it where two splits have the id; None for a photograph's file."""
    # A file's name need not be text.
    wanted = shown(name)
    found = [number for number, own in enumerate(gallery.ids) if own == wanted]
    if not found and ":" in wanted:
        split, own_name = wanted.split(":", 1)
        found = [i for i, own in enumerate(gallery.ids) if own == own_name and gallery.source_of(i).split == split]
    if len(found) > 1:
        places = ", ".join(f"{gallery.source_of(number).split}:{gallery.ids[number]}" for number in found)
        raise ValueError(f"--image: expected an id that one image has, got {name!r} of {len(found)}: {places}")
    if not found and not Path(name).is_file():
        some = ", ".join(gallery.ids[:3])
        raise ValueError(f"--image: expected an id of the gallery, such as {some}, or a photograph's file, got {name!r}")
    return found[0] if found else None


def _photograph_query(searcher, name: str):
    """A photograph by its file."""
    gallery = searcher.gallery
    known = [source.backbone for source in gallery.sources]
    backbone = next((backbone for backbone in known if backbone and "backbone" in backbone), None)
    if backbone is None:
        raise FormatError(
            f"{gallery.folder}: expected to know which backbone made its features, to make those of {name}; found no "
            "{split}_extract.json of caan extract when it was made"
        )
    from ..extraction import extract_images, load_backbone

    [regions] = extract_images([name], load_backbone(backbone["backbone"], backbone["size"]))
    return searcher.features(regions)


def _table(result: dict[str, Any]) -> str:
    lines = []
    for hit in result["hits"]:
        text = f"{hit['name']}  {hit['caption']}" if "caption" in hit else hit["name"]
        lines.append(f"{hit['place']:4}{hit['score']:9.4f}  {text}")
    seconds = result["seconds"]
    stages = ", ".join(f"{name} {1000 * value:,.0f}" for name, value in seconds.items())
    lines.append(f"{result['scored']:,} of {result['gallery']:,} scored in {1000 * sum(seconds.values()):,.0f} ms ({stages})")
    return "\n".join(lines)


def _lines(path: Path) -> list[str]:
    # Not splitlines, which also ends a line at characters that are part of a text.
    lines = [line for line in map(str.strip, read_text(path).split("\n")) if line]
    if not lines:
        raise FormatError(f"{path}: expected a query a line, found none")
    return lines


def _prompted() -> Iterator[str]:
    while True:
        try:
            text = input("text> ").strip()
        except EOFError:
            print()
            return
        if text:
            yield text

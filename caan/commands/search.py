"""Search a gallery that `caan index` has stored: images for a text, captions or images for an image.

The items whose mean vectors are nearest are the shortlist, which the operator puts in order; --exact scores everything. Images
for an image are compared by their mean vectors alone. The exit status is 2 if the model knows no word of a text.
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

from ..errors import FormatError
from ..files import check_writable, read_text, replacing
from ..photographs import Unreadable
from ..progress import bar, warn
from ..text import normalised, shown
from ..unknown import listed, near_spellings, nothing_known
from ..vocabulary import tokenize
from . import images, options, prompt

_SHORTLIST = 200


class NothingKnownError(ValueError):
    """A text of which the model knows no word; the message has near spellings.

    Attributes:
        asked: the text with its unknown words and their near spellings, in types that JSON has.
    """

    def __init__(self, message: str, asked: dict[str, Any]):
        super().__init__(message)
        self.asked = asked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("index", type=Path, metavar="GALLERY", help="folder that caan index wrote")
    parser.add_argument("text", nargs="*", default=[], metavar="TEXT", help="find images for this text")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--image", metavar="IMAGE", help=f"search with {images.HELP}")
    what.add_argument("--queries", type=Path, metavar="FILE", help="find images for each line of a file; prints JSON lines")
    what.add_argument("--interactive", action="store_true", help="ask for texts until `quit` or Ctrl-D")
    parser.add_argument(
        "--find",
        choices=("captions", "images"),
        help="what --image searches: captions (default), or images by their mean vectors (default if there are no captions)",
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many results (10)")
    parser.add_argument(
        "--shortlist", type=int, metavar="N", help="how many items the operator scores (200, or --top if that is more)"
    )
    parser.add_argument("--exact", action="store_true", help="score every item, without a shortlist")
    parser.add_argument(
        "--run", dest="checkpoint", type=Path, metavar="RUN", help="where the gallery's model is now, if it has moved"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file; - prints it instead of the table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the photographs to this file")
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="folder of the photographs, for --html; default: the one that caan index has noted",
    )
    images.add_backbone_options(parser)
    options.add_device_option(parser)
    options.intermixed(parser)
    parser.set_defaults(refuse=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """Search and print."""
    _check(arguments)
    # faiss need not be there for --help.
    from ..gallery import Searcher

    texts = _lines(arguments.queries) if arguments.queries else [(1, arguments.text)]
    searcher = Searcher(arguments.index, arguments.checkpoint, options.device(arguments))
    gallery = searcher.gallery
    for source in gallery.unfinished:
        found = f"{source.finished:,} of its {source.images:,} images"
        print(f"{source.name}: left out, the gallery has {found}; the same caan index command brings the rest", file=sys.stderr)
    photographs = _Photographs(gallery, arguments.photos) if arguments.html else None
    if not arguments.json and not arguments.queries:
        print(f"{len(gallery.image_vectors):,} images, {len(gallery.caption_vectors):,} captions in {arguments.index}")
    if arguments.interactive:
        for text in prompt.texts():
            try:
                print(_table(_answer(searcher, arguments, text)))
            except ValueError as error:
                print(error)
        return
    results = []
    with _output(arguments) as write:
        for line, text in bar(texts, unit=" queries", shown=_is_apart(arguments)):
            try:
                results.append(_answer(searcher, arguments, text))
            except NothingKnownError as error:
                if not arguments.queries:
                    print(f"caan search: error: {error}", file=sys.stderr)
                    raise SystemExit(2) from None
                warn(f"{arguments.queries}, line {line}: {error}")
                results.append({**error.asked, "text": text, "hits": []})
            write(json.dumps(results[-1], indent=None if arguments.queries else 1, ensure_ascii=False) + "\n")
    if not arguments.queries and str(arguments.json) != "-":
        print(_table(results[0]))
    if photographs:
        _write_page(searcher, arguments, results, photographs)


def _check(arguments: argparse.Namespace) -> None:
    """What can be told from the command line alone."""
    arguments.text = " ".join(arguments.text) if arguments.text else None
    asked = [arguments.text is not None, arguments.image is not None, arguments.queries is not None, arguments.interactive]
    if sum(asked) != 1:
        arguments.refuse("expected one of TEXT, --image, --queries and --interactive" + (", got several" if any(asked) else ""))
    if arguments.find and arguments.image is None:
        arguments.refuse("argument --find: expected with --image, got it without")
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
    if arguments.text is not None and not normalised(arguments.text, "text").strip():
        raise ValueError("text: expected words, got none")


def _is_apart(arguments: argparse.Namespace) -> bool:
    """Whether a bar is on another screen than the results, which tell by themselves how far the queries are."""
    return bool(arguments.queries) and (_to_file(arguments) or not sys.stdout.isatty())


def _to_file(arguments: argparse.Namespace) -> bool:
    return bool(arguments.json) and str(arguments.json) != "-"


@contextmanager
def _output(arguments: argparse.Namespace) -> Iterator[Callable[[str], Any]]:
    """Takes the results as text, each when it is found."""
    if _to_file(arguments):
        with replacing(arguments.json) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            yield file.write
    elif arguments.json or arguments.queries:
        yield partial(print, end="", flush=True)
    else:
        yield lambda text: None


class _Photographs:
    """The photographs of a gallery: in the folder that --photos names, or in those that were noted, one a split."""

    def __init__(self, gallery, given: Path | None):
        self._gallery = gallery
        # One that is given is looked through once.
        noted = [None if given else (source.backbone or {}).get("photos") for source in gallery.sources]
        folders = {place: images.photo_folder(given, place) for place in dict.fromkeys(noted)}
        self._folders = {id(source): folders[place] for source, place in zip(gallery.sources, noted, strict=True)}

    def look_up(self, number: int) -> Path | Unreadable | None:
        """That of an image; None where its folder is not known, or has none of it."""
        folder = self._folders[id(self._gallery.source_of(number))]
        return folder and folder.look_up(self._gallery.ids[number])


def _write_page(searcher, arguments: argparse.Namespace, results: list[dict[str, Any]], photographs: _Photographs) -> None:
    """The results as a page: photographs where they are known, and the words that decided."""
    from ..attention.retrieval_page import Answer, Hit, write_retrieval_page

    answers = []
    for result in results:
        words = [()] * len(result["hits"])
        if "text" in result and result["hits"]:
            query = searcher.text(result["text"])
            numbers = np.array([hit["number"] for hit in result["hits"]])
            known = (word if word in searcher.vocabulary else f"<unk:{word}>" for word in tokenize(result["text"]))
            marked = ["<start>", *known, "<end>"]
            words = [list(zip(marked, row.tolist(), strict=True)) for row in searcher.word_attention(query, numbers)]
        hits = [
            Hit(
                hit.get("caption", hit["name"]),
                hit["score"],
                photograph=None if "caption" in hit else photographs.look_up(hit["number"]),
                words=own,
            )
            for hit, own in zip(result["hits"], words, strict=True)
        ]
        asked = result.get("image", "")
        photograph = photographs.look_up(result["number"]) if "number" in result else Path(arguments.image) if asked else None
        note = ". ".join(filter(None, (_unknown_line(result), _scored_line(result))))
        answers.append(Answer(result.get("text", asked), hits, photograph, note))
    write_retrieval_page(arguments.html, f"Search in {arguments.index.name}", answers)


def _answer(searcher, arguments: argparse.Namespace, text: str | None) -> dict[str, Any]:
    """One query with what it found, in types that JSON has.

    Raises:
        NothingKnownError: the model knows no word of the text.
        ValueError: the text or the image cannot be searched with.
    """
    gallery = searcher.gallery
    begin = time.perf_counter()
    query, asked = _image_query(searcher, arguments) if text is None else _text_query(searcher, text)
    encoded = time.perf_counter() - begin
    finds_captions = searcher.finds_captions(query, arguments.find)
    of = len(gallery.caption_vectors if finds_captions else gallery.image_vectors)
    if text is None and not finds_captions:
        hits = searcher.similar(query, arguments.top, asked.get("number"))
        searched = {"by": "mean vectors", "gallery": of, "scored": 0}
    else:
        hits = searcher.search(query, arguments.top, None if arguments.exact else arguments.shortlist)
        searched = {"by": "operator", "gallery": of, "scored": of if arguments.exact else min(arguments.shortlist, of)}
    found = []
    for place, (item, score) in enumerate(zip(hits.items.tolist(), hits.scores.tolist(), strict=True), 1):
        image = int(gallery.image_of_caption[item]) if finds_captions else item
        hit = {"place": place, "score": score, "image": gallery.ids[image], "number": image, **_origin(gallery, image)}
        hit["name"] = hit["image"] if len(gallery.sources) == 1 else f"{hit['split']}:{hit['image']}"
        if finds_captions:
            hit["caption"] = gallery.captions[item]
        found.append(hit)
    return {**asked, **searched, "seconds": {"encode": encoded, **hits.seconds}, "hits": found}


def _text_query(searcher, text: str) -> tuple[Any, dict[str, Any]]:
    text = normalised(text, "text")
    query = searcher.text(text)
    asked = {"text": text, **_unknown(searcher, query.unknown)}
    if not searcher.vocabulary.knows(text):
        raise NothingKnownError(f"text: {nothing_known(searcher.vocabulary, text)}", asked)
    return query, asked


def _image_query(searcher, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    gallery, name = searcher.gallery, arguments.image
    splits = [(source.split, source.images) for source in gallery.sources]
    number = images.find_image(name, gallery.ids, splits, str(gallery.folder))
    if number is not None:
        return searcher.image(number), {"image": shown(name), "number": number, **_origin(gallery, number)}
    features, _ = images.read_regions(name, images.made_by(arguments, gallery.made_by), gallery.folder)
    return searcher.features(features), {"image": shown(name)}


def _unknown(searcher, words: list[str]) -> dict[str, Any]:
    """Words that the model does not know, and for each those that are spelt much like it; nothing where there are none."""
    near = near_spellings(searcher.vocabulary, words)
    return {"unknown": list(near), "near": near} if near else {}


def _unknown_line(result: dict[str, Any]) -> str:
    return f"Words that the model does not know: {listed(result['near'])}" if "unknown" in result else ""


def _origin(gallery, number: int) -> dict[str, str]:
    """Where an image of the gallery is from."""
    source = gallery.source_of(number)
    return {"split": source.split, "data": source.data}


def _table(result: dict[str, Any]) -> str:
    lines = [line] if (line := _unknown_line(result)) else []
    if result["hits"]:
        lines.append(f"{'':4}{'score':>9}  {'image and caption' if 'caption' in result['hits'][0] else 'image'}")
    for hit in result["hits"]:
        text = f"{hit['name']}  {hit['caption']}" if "caption" in hit else hit["name"]
        lines.append(f"{hit['place']:4}{hit['score']:9.4f}  {text}")
    seconds = result["seconds"]
    stages = ", ".join(f"{name} {1000 * value:,.0f}" for name, value in seconds.items())
    lines.append(f"{_scored_line(result)} in {1000 * sum(seconds.values()):,.0f} ms ({stages})")
    return "\n".join(lines)


def _scored_line(result: dict[str, Any]) -> str:
    if "by" not in result:
        return ""
    if result["by"] == "operator":
        return f"{result['scored']:,} of {result['gallery']:,} scored"
    how = "the cosine of their mean vectors (the operator scores no image against an image)"
    return f"{result['gallery']:,} images compared by {how}"


def _lines(path: Path) -> list[tuple[int, str]]:
    """The queries of a file, each with the number of its line."""
    # Not splitlines, which also ends a line at characters that are part of a text.
    lines = [(number, line) for number, line in enumerate(map(str.strip, read_text(path).split("\n")), 1) if line]
    if not lines:
        raise FormatError(f"{path}: expected a query a line, found none")
    return lines

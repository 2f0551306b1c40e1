"""Searching a gallery: a shortlist by mean vectors, put in order by the operator."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor

import caan_kernels as ck

from .. import checkpoint
from ..data import CaptionBatch, ImageBatch
from ..errors import MissingFileError
from ..isolation import integers, isolated
from ..model import CAAN
from ..vocabulary import tokenize
from .build import mean_vectors
from .store import Contents, Gallery

# Items that are scored at once when all are: 113 MiB of projected images at D = H = 1024.
_TILE = 256


class Query(NamedTuple):
    """One caption, which asks for images, or one image, which asks for captions.

    Attributes:
        side: projected, one item.
        vector: (1, D) float32, the mean vector.
        unknown: words of a text that the model does not know.
    """

    side: ck.ProjectedWords | ck.ProjectedRegions
    vector: np.ndarray
    unknown: list[str]

    @property
    def wants_images(self) -> bool:
        """Whether images are searched; else captions."""
        return isinstance(self.side, ck.ProjectedWords)


@dataclass
class Hits:
    """What a query found, the best first.

    Attributes:
        items: (K,) int64, images or captions of the gallery.
        scores: (K,) float32, the operator's.
        seconds: how long each stage took: shortlist, read, score.
    """

    items: np.ndarray
    scores: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)


class Searcher:
    """A gallery with the model that has made it.

    Args:
        folder: of the gallery.
        run: the run or checkpoint; None takes the one that the gallery was made with.
        device: where the model and the operator run.

    Raises:
        DataError: the gallery or the checkpoint cannot be used, or they do not belong together.
    """

    def __init__(self, folder: str | Path, run: str | Path | None = None, device: torch.device | str = "cpu"):
        path = Path(run or Contents.read(Path(folder)).checkpoint)
        if run is None and not path.exists():
            where = "--run (run= in Python) names it where it is"
            raise MissingFileError(f"{path}: expected the model of {folder}, found none; {where}")
        model, self.vocabulary, _ = checkpoint.load_model(path)
        self.gallery = Gallery(folder, checkpoint.digest(model, self.vocabulary), path)
        self.device = torch.device(device)
        self.model: CAAN = model.to(self.device)

    @isolated()
    def text(self, text: str) -> Query:
        """A text as a query.

        Raises:
            ValueError: it has no words.
        """
        if not tokenize(text):
            raise ValueError(f"query: expected a text with words, got {text!r}")
        ids = integers([self.vocabulary.encode(text)])
        batch = CaptionBatch(ids, integers([ids.shape[1]]), integers([0]))
        side = self.model.prepare_captions(batch.to(self.device))
        return Query(side, self._mean_vectors(side, batch.word_lengths), self.vocabulary.unknown(text))

    @isolated()
    def features(self, regions: np.ndarray) -> Query:
        """The region features of one image, (R, F), as a query.

        Raises:
            ValueError: F is not the model's.
        """
        if regions.shape[1] != self.model.config.region_width:
            raise ValueError(f"regions: expected features of width {self.model.config.region_width}, got {regions.shape[1]}")
        batch = ImageBatch(torch.from_numpy(regions)[None], integers([len(regions)]), integers([0]))
        side = self.model.prepare_images(batch.to(self.device))
        return Query(side, self._mean_vectors(side, batch.region_lengths), [])

    def image(self, number: int) -> Query:
        """An image of the gallery as a query."""
        side = self._on_device(self.gallery.images(np.array([number])))
        return Query(side, self.gallery.image_vectors[number : number + 1], [])

    def caption(self, number: int) -> Query:
        """A caption of the gallery as a query."""
        side = self._on_device(self.gallery.words(np.array([number])))
        return Query(side, self.gallery.caption_vectors[number : number + 1], [])

    def finds_captions(self, query: Query, find: str | None = None) -> bool:
        """Whether captions are searched: for an image, unless `find` is "images", or None and there are no captions."""
        find = find or ("captions" if len(self.gallery.caption_vectors) else "images")
        return not query.wants_images and find == "captions"

    @isolated()
    def search(self, query: Query, top: int = 10, shortlist: int | None = 200) -> Hits:
        """The best of the gallery.

        Args:
            query: from `text`, `features`, `image` or `caption`.
            top: how many; fewer where the gallery has fewer.
            shortlist: how many items, by their mean vectors, the operator scores and sorts; None: all of them.

        Raises:
            ValueError: a number is out of range, or nothing is there to be found.
        """
        vectors = self.gallery.image_vectors if query.wants_images else self.gallery.caption_vectors
        if top < 1:
            raise ValueError(f"top: expected at least 1, got {top}")
        if shortlist is not None and shortlist < top:
            raise ValueError(f"shortlist: expected at least the {top} that are asked for, got {shortlist}")
        if not len(vectors):
            raise ValueError(f"query: expected a gallery with {'images' if query.wants_images else 'captions'}, found none")
        seconds = dict.fromkeys(("shortlist", "read", "score"), 0.0)
        with _timed(seconds, "shortlist"):
            if shortlist is None:
                items = np.arange(len(vectors))
            else:
                items = np.sort(faiss.knn(query.vector, vectors, min(shortlist, len(vectors)), faiss.METRIC_INNER_PRODUCT)[1][0])
        scores = np.empty(len(items), np.float32)
        for first in range(0, len(items), _TILE):
            part = slice(first, first + _TILE)
            with _timed(seconds, "read"):
                found = self._on_device(self.gallery.images(items[part]) if query.wants_images else self.gallery.words(items[part]))
            with _timed(seconds, "score"):
                scores[part] = self._scores(query, found).cpu().numpy()
        # Of equal scores the first in the gallery comes first.
        best = np.argsort(-scores, kind="stable")[:top]
        return Hits(items[best], scores[best], seconds)

    def similar(self, query: Query, top: int, without: int | None = None) -> Hits:
        """Images like an image, by the cosine of their mean vectors: the operator scores no image against an image.

        Args:
            query: from `features` or `image`.
            top: how many; fewer where the gallery has fewer.
            without: the number of an image that is left out, the query itself.

        Raises:
            ValueError: a number is out of range, or the query is a text.
        """
        if top < 1:
            raise ValueError(f"top: expected at least 1, got {top}")
        if query.wants_images:
            raise ValueError("query: expected an image, got a text")
        seconds = {"compare": 0.0}
        with _timed(seconds, "compare"):
            vectors = self.gallery.image_vectors
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query.vector)
            scores = (vectors @ query.vector[0]) / np.maximum(lengths, np.finfo(np.float32).tiny)
            best = np.argsort(-scores, kind="stable")
            best = best[best != without][:top] if without is not None else best[:top]
        return Hits(best, scores[best].astype(np.float32), seconds)

    def _scores(self, query: Query, found: ck.ProjectedRegions | ck.ProjectedWords) -> Tensor:
        regions, words = (found, query.side) if query.wants_images else (query.side, found)
        count = len(found.features)
        pairs = torch.zeros(count, 2, dtype=torch.int64, device="cpu")
        pairs[:, 0 if query.wants_images else 1] = torch.arange(count, device="cpu")
        return self.model.attention(regions, words, pairs)

    @isolated()
    def word_attention(self, query: Query, items: np.ndarray) -> np.ndarray:
        """(K, N) float32, g of equation 11: what the words of a text, marks included, count for each of K images."""
        regions = self._on_device(self.gallery.images(items))
        pairs = torch.zeros(len(items), 2, dtype=torch.int64, device="cpu")
        pairs[:, 0] = torch.arange(len(items), device="cpu")
        return self.model.attention.maps(regions, query.side, pairs).word_attention.cpu().numpy()

    def _mean_vectors(self, side: ck.ProjectedRegions | ck.ProjectedWords, lengths: Tensor) -> np.ndarray:
        return mean_vectors(side.features.cpu(), lengths, self.model.config.similarity).numpy()

    def _on_device(self, side: ck.ProjectedRegions | ck.ProjectedWords):
        return side._replace(features=side.features.to(self.device), products=side.products.to(self.device))


def shortlist_recall(
    searcher: Searcher, queries: Sequence[Query], lengths: Sequence[int], tops: Sequence[int] = (1, 5, 10)
) -> dict[int, dict[int, float]]:
    """How much of the exact ranking shortlists hold.

    Args:
        searcher: of the gallery.
        queries: all for images, or all for captions.
        lengths: of the shortlists.
        tops: how many of the exact ranking's best are looked for.

    Returns:
        {length: {top: percentage of the exact top that is in the shortlist, over all queries}}.
    """
    found = {length: dict.fromkeys(tops, 0.0) for length in lengths}
    gallery = searcher.gallery
    for query in queries:
        exact = searcher.search(query, max(tops), None).items
        vectors = gallery.image_vectors if query.wants_images else gallery.caption_vectors
        nearest = faiss.knn(query.vector, vectors, min(max(lengths), len(vectors)), faiss.METRIC_INNER_PRODUCT)[1][0]
        for length, by_top in found.items():
            for top in tops:
                wanted = exact[:top]
                by_top[top] += 100 * float(np.isin(wanted, nearest[:length]).mean()) / len(queries)
    return found


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - begin

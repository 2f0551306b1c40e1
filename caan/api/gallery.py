"""A gallery that `caan index` has stored, searched from Python."""

from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import torch

from ..gallery import Searcher
from ..gallery.search import Query
from .images import Image
from .model import Model


class Found(NamedTuple):
    """What a search found.

    Attributes:
        score: the operator's; if images were found for an image, the cosine of the mean vectors.
        image: the id of the image; for a caption, the id of its image.
        number: that image's number in the gallery, which `Gallery.search` takes as a query.
        split: the split of that image.
        caption: the text, if captions were searched; else None.
    """

    score: float
    image: str
    number: int
    split: str
    caption: str | None


class Gallery:
    """A gallery that `caan index` has stored, with its model; `len` is the number of its images.

    Args:
        folder: the folder that `caan index` wrote.
        run: the run or checkpoint of its model, if it has moved; None: the path that `caan index` was given.
        device: where the model and the operator run.

    Attributes:
        model: the `Model`; its backbone is the one that `caan index` has noted, if any.

    Raises:
        DataError: the gallery or the model cannot be used, or the gallery is of another model.

    Examples:
        >>> import caan
        >>> gallery = caan.Gallery("gallery")
        >>> hits = gallery.search("a dog runs", top=2)
        >>> len(hits), hits[0].score >= hits[1].score
        (2, True)
        >>> from pathlib import Path
        >>> captions = gallery.search(Path("photos/dog.png"), top=3)
        >>> similar = gallery.search(hits[0].number, find="images")
    """

    def __init__(self, folder: str | Path, run: str | Path | None = None, device: torch.device | str = "cpu"):
        self._searcher = Searcher(folder, run, device)
        self._gallery = self._searcher.gallery
        backbone = self._gallery.made_by
        settings = backbone and {"backbone": backbone["backbone"], "size": backbone.get("size")}
        self.model = Model(self._searcher.model, self._searcher.vocabulary, backbone=settings, device=device)

    def __len__(self) -> int:
        return len(self._gallery.image_vectors)

    def search(
        self, query: str | int | Image, top: int = 10, *, find: str | None = None, shortlist: int | None = 200
    ) -> list[Found]:
        """The images that fit a text best, or the captions or images that fit an image best.

        Args:
            query: a text (a string); or an image: a `pathlib.Path`, a Pillow image, (R, F) features, or the number of an image of
                the gallery. Photographs need the backbone, which `caan index` notes.
            top: how many; fewer where the gallery has fewer.
            find: "images", or for an image also "captions". None: images for a text; for an image captions, or images where the
                gallery has no captions. Images for an image are found by the cosine of mean vectors: the operator scores no image
                against an image.
            shortlist: how many items the operator scores and sorts, `top` at least: those whose mean vectors are nearest to that
                of the query. None scores all items.

        Returns:
            The best first. If images are found for a number, the image of that number is left out.

        Raises:
            ValueError: a number is out of range, the model knows no word of the text, or the gallery has no captions to find.
            TypeError, DataError: the image cannot be used.
        """
        if find not in (None, "images", "captions"):
            raise ValueError(f"find: expected 'images', 'captions' or None, got {find!r}")
        if isinstance(query, str) and find == "captions":
            raise ValueError("find: expected 'images' or None for a text, got 'captions': a text finds images only")
        asked = self._query(query)
        captions = self._searcher.finds_captions(asked, find)
        if asked.wants_images or captions:
            hits = self._searcher.search(asked, top, None if shortlist is None else max(shortlist, top))
        else:
            hits = self._searcher.similar(asked, top, int(query) if isinstance(query, Integral) else None)
        return [self._found(*hit, captions) for hit in zip(hits.items.tolist(), hits.scores.tolist(), strict=True)]

    def _query(self, query: str | int | Image) -> Query:
        if isinstance(query, str):
            self.model.check_known(query)
            return self._searcher.text(query)
        if isinstance(query, Integral):
            if not 0 <= query < len(self):
                raise ValueError(f"query: expected the number of an image, from 0 to {len(self) - 1}, got {query}")
            return self._searcher.image(int(query))
        [features] = self.model._backbone.features([query], "query")
        return self._searcher.features(features)

    def _found(self, item: int, score: float, is_caption: bool) -> Found:
        number = int(self._gallery.image_of_caption[item]) if is_caption else item
        caption = self._gallery.captions[item] if is_caption else None
        return Found(score, self._gallery.ids[number], number, self._gallery.source_of(number).split, caption)

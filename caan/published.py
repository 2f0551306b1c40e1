"""What others have published, to print beside one's own figures on the same data."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

SOURCE = "performance tables of Awesome_Matching_Pretraining_Transfering, September 2025"


@dataclass(frozen=True)
class PublishedRow:
    """One method on one test.

    Attributes:
        method: its name.
        protocol: "f30k" (1,000 images), "coco1k" (mean over five folds of 1,000), "coco5k" or "f8k" (1,000 images).
        image_to_text: R@1, R@5, R@10 in percent.
        text_to_image: likewise.
        ensemble: two models' scores are averaged.
        source: where the row is from.
    """

    method: str
    protocol: str
    image_to_text: tuple[float, float, float]
    text_to_image: tuple[float, float, float]
    ensemble: bool = False
    source: str = SOURCE

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, to the tables' one decimal."""
        return round(sum(self.image_to_text) + sum(self.text_to_image), 1)


PROTOCOLS = {"f30k": "Flickr30K 1K", "coco1k": "COCO 5 x 1K", "coco5k": "COCO 5K", "f8k": "Flickr8k 1K"}
"""What each protocol is called in a table."""


@dataclass(frozen=True)
class PublishedTest:
    """What tells the images that published figures are of from others.

    Attributes:
        data: the data set's name.
        images: how many its test has.
        folds: whether figures are means over folds of 1,000 images.
        marks: digests of captions of its test that the other data sets here do not have.
    """

    data: str
    images: int
    folds: bool
    marks: tuple[str, ...]


_COCO_MARKS = ("371c4e56cb5c9b44", "0f7faa2f4279711a", "792d2133b6329811")
TESTS = {
    "f30k": PublishedTest("Flickr30K", 1000, False, ("66344f73a35912e8", "50d3aa3b2dfc062b", "460998a7c4271611")),
    "coco1k": PublishedTest("COCO", 5000, True, _COCO_MARKS),
    "coco5k": PublishedTest("COCO", 5000, False, _COCO_MARKS),
    "f8k": PublishedTest("Flickr8k", 1000, False, ("bd78041405197820", "caa3ec972034822e")),
}
PUBLISHED = (
    PublishedRow("CAAN", "f30k", (70.1, 91.6, 97.2), (52.8, 79.0, 87.9)),
    PublishedRow("SCAN", "f30k", (67.4, 90.3, 95.8), (48.6, 77.7, 85.2), ensemble=True),
    PublishedRow("IMRAM", "f30k", (74.1, 93.0, 96.6), (53.9, 79.4, 87.2)),
    PublishedRow("SGRAF", "f30k", (77.8, 94.1, 97.4), (58.5, 83.0, 88.8), ensemble=True),
    PublishedRow("CAAN", "coco1k", (75.5, 95.4, 98.5), (61.3, 89.7, 95.2)),
    PublishedRow("SCAN", "coco1k", (72.7, 94.8, 98.4), (58.8, 88.4, 94.8), ensemble=True),
    PublishedRow("IMRAM", "coco1k", (76.7, 95.6, 98.5), (61.7, 89.1, 95.0)),
    PublishedRow("SGRAF", "coco1k", (79.6, 96.2, 98.5), (63.2, 90.7, 96.1), ensemble=True),
    PublishedRow("CAAN", "coco5k", (52.5, 83.3, 90.9), (41.2, 70.3, 82.9)),
    PublishedRow("SCAN", "coco5k", (50.4, 82.2, 90.0), (38.6, 69.3, 80.4), ensemble=True),
    PublishedRow("IMRAM", "coco5k", (53.7, 83.2, 91.0), (39.7, 69.1, 79.8)),
    PublishedRow("SGRAF", "coco5k", (57.8, 84.9, 91.6), (41.9, 70.7, 81.3), ensemble=True),
    PublishedRow("SCAN", "f8k", (52.2, 81.0, 89.2), (38.3, 67.8, 78.9), ensemble=True),
)


def published_rows(protocol: str) -> tuple[PublishedRow, ...]:
    """The rows of one protocol.

    Raises:
        ValueError: nothing is known of that protocol.
    """
    rows = tuple(row for row in PUBLISHED if row.protocol == protocol)
    if not rows:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return rows


def why_not_comparable(protocol: str, images: int, captions: Sequence[str]) -> str | None:
    """What tells a split from the test that a protocol's rows are of; None where nothing does.

    Args:
        protocol: one of `PROTOCOLS`.
        images: how many the split has.
        captions: its captions.
    """
    test = TESTS[protocol]
    if images != test.images:
        return f"expected the {test.images:,} images of the test of {test.data}, found {images:,}"
    if not any(caption_digest(caption) in test.marks for caption in captions):
        return f"expected the captions of the test of {test.data}, found others"
    return None


def caption_digest(caption: str) -> str:
    """A fingerprint that case, punctuation and spaces do not change."""
    return hashlib.sha256(re.sub(r"[\W_]+", "", caption.casefold()).encode("utf-8", "replace")).hexdigest()[:16]

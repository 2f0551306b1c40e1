"""Data sets as they lie on people's disks, and batches of them."""

from .batches import (
    CaptionBatch,
    Captions,
    ImageBatch,
    Images,
    LengthBatches,
    OwnPairs,
    PairBatch,
    Pairs,
    ShuffledBatches,
    make_loader,
)
from .record import ExtractRecord, read_record, records
from .regions import RegionFile
from .splits import (
    KarpathyFile,
    KarpathyImage,
    Split,
    load_karpathy_split,
    load_scan_split,
    read_karpathy,
    recorded_captions_per_image,
)
from .statistics import channel_statistics

__all__ = [
    "CaptionBatch",
    "Captions",
    "ExtractRecord",
    "ImageBatch",
    "Images",
    "KarpathyFile",
    "KarpathyImage",
    "LengthBatches",
    "OwnPairs",
    "PairBatch",
    "Pairs",
    "RegionFile",
    "ShuffledBatches",
    "Split",
    "channel_statistics",
    "load_karpathy_split",
    "load_scan_split",
    "make_loader",
    "read_karpathy",
    "read_record",
    "recorded_captions_per_image",
    "records",
]

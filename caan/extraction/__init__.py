"""From photographs, or from other people's region features, to the SCAN layout."""

from ..photographs import Unreadable
from .backbones import DEFAULT_BACKBONE, Backbone, MapBackbone, load_backbone
from .bottom_up import open_features
from .photographs import FoundPhotographs, Photographs, extract_images, grid_boxes
from .pixels import read_photograph
from .regions import Regions, RegionSource
from .run import Summary, extract_split
from .sources import FORMATS, CaptionedImage, read_captions, read_names, usual_captions

__all__ = [
    "DEFAULT_BACKBONE",
    "FORMATS",
    "Backbone",
    "CaptionedImage",
    "FoundPhotographs",
    "MapBackbone",
    "Photographs",
    "RegionSource",
    "Regions",
    "Summary",
    "Unreadable",
    "extract_images",
    "extract_split",
    "grid_boxes",
    "load_backbone",
    "open_features",
    "read_captions",
    "read_names",
    "read_photograph",
    "usual_captions",
]

"""A gallery projected once, stored, and searched: mean vectors for a shortlist, the operator for the order."""

from .build import build_index, drop_split
from .search import Hits, Query, Searcher, shortlist_recall
from .store import Contents, Gallery, Source

__all__ = ["Contents", "Gallery", "Hits", "Query", "Searcher", "Source", "build_index", "drop_split", "shortlist_recall"]

"""What a model attends to: numbers, pictures, and pages with what it retrieves.

maps.py              the operator's maps of a pair, with the words' texts and the regions' places
heat.py              attention over regions as an image
figures.py           PNG figures of a pair and of trainings
figure_page.py, retrieval_page.py, rendering.py      HTML pages, each one file that needs nothing else
"""

from .maps import PairAttention, RegionBoxes, explain

__all__ = ["PairAttention", "RegionBoxes", "explain"]

"""HTML pages, each one file that needs nothing else: images inside, no scripts, nothing from a network."""

from .figures import Table, write_figure_page
from .retrieval import Answer, Hit, write_retrieval_page

__all__ = ["Answer", "Hit", "Table", "write_figure_page", "write_retrieval_page"]

"""What Python programs use: a model with texts and images going in, a gallery that is searched, features of photographs.

`caan` has all of it under short names: `caan.load`, `caan.Model`, `caan.Gallery`, `caan.extract`.
"""

from .extracting import extract
from .gallery import Found, Gallery
from .model import EncodedImages, EncodedTexts, Hit, Model, load

__all__ = ["EncodedImages", "EncodedTexts", "Found", "Gallery", "Hit", "Model", "extract", "load"]

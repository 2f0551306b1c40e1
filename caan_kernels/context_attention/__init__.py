"""Context-aware attention between the regions of an image and the words of a caption (docs/operator.md)."""

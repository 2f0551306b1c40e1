"""The operator in Triton (docs/max-similarity.md)."""

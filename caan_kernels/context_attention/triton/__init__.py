"""The operator's Triton kernels (docs/triton.md)."""

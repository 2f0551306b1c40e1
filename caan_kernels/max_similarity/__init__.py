"""MaxSim: for every row of one side the largest inner product with a row of the other (docs/max-similarity.md)."""

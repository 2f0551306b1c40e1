"""The rows of the paper's Table 4, as options of the model."""

TABLE_4 = {
    "baseline": {"inter": False, "intra": None},
    "IA": {"intra": None},
    "FA": {"inter": False, "intra": "features"},
    "SA": {"inter": False},
    "IA+FA": {"intra": "features"},
    "CAAN": {},
}

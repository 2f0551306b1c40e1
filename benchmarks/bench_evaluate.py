"""A whole evaluation, reading and encoding included, against the floor of its arithmetic in the same run.

    python benchmarks/bench_evaluate.py RUN --data DIR --split dev
    python benchmarks/bench_evaluate.py --width 256 --data DIR --split dev     weights as they start

Probes of the floor and evaluations take turns. The floor counts every pair and each item's projections; encoders, reading
and counting ranks come on top of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from floor import Probe, pairs_work, projection_work
from measure import Neighbours, median, spread

from caan import CAAN, ModelConfig, Vocabulary
from caan.checkpoint import load_model
from caan.data import Captions, load_scan_split
from caan.evaluation import evaluate


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run, or a checkpoint; default: weights as they start")
    parser.add_argument("--width", type=int, default=256, help="D where there is no run (256)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder in the SCAN layout")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="evaluations (2)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    split = load_scan_split(options.data, options.split, limit=options.limit)
    if options.run:
        model, vocabulary, _ = load_model(options.run)
    else:
        vocabulary = Vocabulary.from_captions(split.captions)
        model = CAAN(ModelConfig(split.regions.width, len(vocabulary), width=options.width))
    config, words = model.config, Captions(split, vocabulary).lengths.tolist()
    hidden = config.hidden_width or config.width
    regions = split.region_counts.tolist()
    work = pairs_work(regions, words, None, config.width, hidden)
    work = work.plus(projection_work(sum(regions), sum(words), config.width, hidden))

    probe = Probe(torch.device("cpu"), torch.float32)
    seconds = []
    neighbours = Neighbours()
    for _ in range(options.repeats):
        probe.sample()
        found = evaluate([(model, vocabulary)], split, progress=True)
        seconds.append(found.seconds)
        probe.sample()
    floor = probe.best.seconds(work)
    taken = median(seconds)
    runs = f"median of {len(seconds)}, spread {spread(seconds) or 0:.0%}"
    rates = (
        f"{probe.best.flops / 1e9:.0f} GFLOP/s ({probe.matrix_name}) and {probe.best.tanh / 1e9:.2f} G tanh/s ({probe.tanh_name})"
    )
    others = f"other processes took {neighbours.share() or 0:.0%} of the cores"
    print(f"{found.pairs:,} pairs at D = {config.width}: {taken:.1f} s ({runs}), {found.pairs / taken:,.0f} pairs/s")
    print(f"floor {floor:.1f} s at {rates}: {taken / floor:.2f}x the floor; {others}")


if __name__ == "__main__":
    main()

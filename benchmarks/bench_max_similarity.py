"""MaxSim against the ways it is usually written, and against packages that do nothing else: one table, in about a minute.

    python benchmarks/bench_max_similarity.py
    python benchmarks/bench_max_similarity.py --workload colpali --json results.json

Implementations take turns, so that a noisy machine is unkind to all of them. Each is held against float64, and no ratio is printed
for one that disagrees. Packages from PyPI (maxsim-cpu, fast-maxsim) take part where they can be imported.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from floor import Probe, Work
from machine import commit, cpu_name
from measure import MIB, Neighbours, PeakMemory, max_error, median, relative_error, seconds_of, spread
from measuring import Clock, first_line
from torch import Tensor
from workloads import CAPTION_LENGTHS, RandomSource, hardest_negative_loss, loss_gradient

import caan_kernels as ck

SECONDS = 60.0
MOST_RUNS = 5
OURS, EINSUM, COMPILED = "cpu", "einsum", "compiled"
# Packages of one interface, and the widest rows that they take: beyond, maxsim-cpu ends the process with a segmentation fault.
PACKAGES = {"maxsim_cpu": 128, "fast_maxsim": None}
# Products that are held at one time by what stores them.
BLOCK_BYTES = 256 << 20
CHECKED = (8, 24)
# Of the largest score; relative L2 of a gradient.
TOLERANCES = {"scores": 2e-6, "gradients": 1e-5}


@dataclass(frozen=True)
class Workload:
    """Tensors to be scored, float32; words at and beyond the lengths are 0.

    Attributes:
        regions: (I, M, D), no padding.
        words: (T, N, D).
        lengths: (T,) real words.
        pairs: (P, 2), or None for all pairs.
        training: whether a run is forward, loss on the hardest negatives, and backward.
    """

    name: str
    regions: Tensor
    words: Tensor
    lengths: Tensor
    pairs: Tensor | None = None
    training: bool = False

    @property
    def shape(self) -> str:
        if self.pairs is not None:
            return f"{len(self.pairs)} pairs"
        return f"{len(self.regions)} x {len(self.words)}"

    @property
    def pair_count(self) -> int:
        return len(self.regions) * len(self.words) if self.pairs is None else len(self.pairs)

    def work(self, with_gradient: Tensor | None = None) -> Work:
        """That nobody avoids: 2mnD flops a pair, and to read each item once that takes part.

        Of a training step: with the words of pairs that have a gradient added to rows of both sides, and gradients written.
        """
        _, m, width = self.regions.shape
        images, captions = (torch.arange(len(x)) for x in (self.regions, self.words))
        if self.pairs is None:
            words_met = len(images) * int(self.lengths.sum())
        else:
            words_met = int(self.lengths[self.pairs[:, 1]].sum())
            images, captions = (x.unique() for x in self.pairs.unbind(1))
        numbers = width * (len(images) * m + int(self.lengths[captions].sum()))
        flops = 2.0 * m * width * words_met
        if with_gradient is not None:
            flops += 4.0 * width * int((with_gradient.sum(0) * self.lengths).sum())
            numbers *= 2
        return Work(flops, 0.0, 4.0 * numbers)


Scores = Callable[[Workload], Tensor]


def ours(w: Workload) -> Tensor:
    return ck.max_similarity(w.regions, w.words, word_lengths=w.lengths, pairs=w.pairs, backend=OURS)


def dense(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """(I, T): the einsum that everybody writes."""
    best = torch.einsum("imd,tnd->itmn", regions, words).amax(2)
    return best.masked_fill(torch.arange(words.shape[1]) >= lengths[:, None], 0).sum(-1)


def dense_list(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """(P,): the same of pairs that were gathered."""
    best = (regions @ words.mT).amax(1)
    return best.masked_fill(torch.arange(words.shape[1]) >= lengths[:, None], 0).sum(-1)


def in_blocks(all_pairs: Callable[..., Tensor]) -> Scores:
    """All pairs or a list, a block of captions or of pairs at a time; a training step at once, as autograd keeps all."""

    def scores(w: Workload) -> Tensor:
        images, m, width = w.regions.shape
        if w.training:
            return all_pairs(w.regions, w.words, w.lengths)
        if w.pairs is None:
            size = even(len(w.words), BLOCK_BYTES // (4 * images * m * w.words.shape[1]))
            return torch.cat([all_pairs(w.regions, *x) for x in zip(w.words.split(size), w.lengths.split(size), strict=True)], 1)
        blocks = w.pairs.split(max(1, BLOCK_BYTES // (4 * m * width)))
        return torch.cat([dense_list(w.regions[i], w.words[t], w.lengths[t]) for i, t in (x.unbind(1) for x in blocks)])

    return scores


def even(count: int, most: int) -> int:
    """The largest divisor up to `most`: blocks of one shape are compiled once."""
    return max(size for size in range(1, count + 1) if count % size == 0 and size <= max(1, most))


def by_package(package: ModuleType) -> Scores:
    """One query at a time against all its documents, the interface of these packages; words without padding."""

    def scores(w: Workload) -> Tensor:
        documents, queries = w.regions.numpy(), [x[:n].numpy() for x, n in zip(w.words, w.lengths.tolist(), strict=True)]
        if w.pairs is None:
            columns = [torch.as_tensor(package.maxsim_scores(query, documents)) for query in queries]
            return torch.stack(columns, 1)
        result = torch.empty(len(w.pairs))
        for t in w.pairs[:, 1].unique().tolist():
            places = (w.pairs[:, 1] == t).nonzero().flatten()
            chosen = [documents[i] for i in w.pairs[places, 0].tolist()]
            result[places] = torch.as_tensor(package.maxsim_scores_variable(queries[t], chosen))
        return result

    return scores


def run(scores: Scores, w: Workload) -> Tensor:
    """One run; returns the scores."""
    if not w.training:
        with torch.no_grad():
            return scores(w)
    return gradients(scores, w)[0]


def gradients(scores: Scores, w: Workload) -> tuple[Tensor, ...]:
    """Scores, and the loss's gradients with respect to regions and words."""
    leaves = [x.detach().requires_grad_() for x in (w.regions, w.words)]
    result = scores(Workload(w.name, *leaves, w.lengths, w.pairs, True))
    return result.detach(), *torch.autograd.grad(hardest_negative_loss(result), leaves)


@dataclass
class Row:
    """One implementation on one workload.

    Attributes:
        error, allowed: of the scores, absolute, against float64; of a training step the larger of that and the gradients',
            each over what is allowed.
        faster: our time is so many times shorter; None while either disagrees.
        floor_percent: least time for the work, at the run's fastest rates, over the measured time.
    """

    workload: str
    by: str
    shape: str
    pairs: int
    error: float
    allowed: float
    extra_bytes: int | None
    work: Work
    seconds: list[float] = field(default_factory=list)
    faster: float | None = None
    floor_percent: float = 0.0

    @property
    def agrees(self) -> bool:
        return self.error <= self.allowed


class Benchmark:
    """What outlives one workload."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.device = clock, torch.device("cpu")
        clock.say("floor: matrix products and reading")
        self.probe = Probe(self.device, torch.float32)
        self.memory = PeakMemory(self.device)
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.packages = {name: found for name in PACKAGES if (found := self.imported(name))}

    def imported(self, name: str) -> ModuleType | None:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            self.notes.append(f"{name} does not take part: {first_line(error)}")
            return None

    def implementations(self, w: Workload) -> dict[str, Scores]:
        found = {OURS: ours, EINSUM: in_blocks(dense)}
        # A compiled training step takes as long as all else together to compile, and is not faster than the einsum.
        if w.pairs is None and not w.training:
            found[COMPILED] = in_blocks(torch.compile(dense, dynamic=False))
        for name, package in {} if w.training else self.packages.items():
            if PACKAGES[name] is None or w.regions.shape[2] <= PACKAGES[name]:
                found[name] = by_package(package)
            else:
                self.notes.append(
                    f"{w.name}: {name} does not take part, it crashes with rows of more than {PACKAGES[name]} numbers"
                )
        return found

    def measure(self, w: Workload, seconds: float) -> None:
        """First runs, which are checked, and then A B A B until the workload's share of the time is over."""
        end = self.clock.now() + seconds
        self.clock.say(f"{w.name}: {w.shape}")
        taking_part, rows = self.implementations(w), {}
        oracle = self.oracle(w)
        for name, scores in taking_part.items():
            try:
                rows[name] = self.first_run(name, scores, w, oracle)
            except Exception as error:  # no memory, or whatever a compiler can raise
                self.notes.append(f"{w.name}: {name} failed: {first_line(error)}")
        for turn in range(MOST_RUNS):
            for name, row in rows.items():
                expected = row.seconds[-1] if row.seconds else 0.0
                if turn and self.clock.now() + expected > end and name != OURS:
                    continue
                self.probe.sample()
                before = None if w.pairs is None else self.probe.empty_caches
                row.seconds.append(seconds_of(lambda scores=taking_part[name]: run(scores, w), self.device, 0.2, before))
        self.rows += rows.values()

    def oracle(self, w: Workload) -> tuple[Tensor, list[Tensor]]:
        """Float64 scores of the first images and captions, or pairs; of a training step all, and gradients."""

        def exact(w: Workload) -> Tensor:
            return ck.max_similarity(w.regions, w.words, word_lengths=w.lengths, pairs=w.pairs, backend="reference")

        if w.training:
            scores, *found = gradients(exact, Workload(w.name, w.regions.double(), w.words.double(), w.lengths, None, True))
            return scores, found
        images, captions = CHECKED
        if w.pairs is None:
            part = Workload(w.name, w.regions[:images].double(), w.words[:captions].double(), w.lengths[:captions])
        else:
            i, t = w.pairs[:captions].unbind(1)
            places = torch.arange(len(i))
            part = Workload(w.name, w.regions[i].double(), w.words[t].double(), w.lengths[t], torch.stack([places, places], 1))
        return exact(part), []

    def first_run(self, name: str, scores: Scores, w: Workload, oracle: tuple[Tensor, list[Tensor]]) -> Row:
        self.clock.say(f"  {name}")
        if name == COMPILED:
            run(scores, w)
        with self.memory.watch(name) as seen:
            found = run(scores, w)
        exact, exact_gradients = oracle
        checked = found[: len(exact)] if w.pairs is not None else found[: exact.shape[0], : exact.shape[1]]
        error, allowed = max_error(checked, exact), TOLERANCES["scores"] * float(exact.abs().max())
        if w.training:
            errors = [relative_error(x, y) for x, y in zip(gradients(scores, w)[1:], exact_gradients, strict=True)]
            error, allowed = max(error / allowed, *(x / TOLERANCES["gradients"] for x in errors)), 1.0
        with_gradient = loss_gradient(found) != 0 if w.training else None
        return Row(w.name, name, w.shape, w.pair_count, error, allowed, seen["bytes"], w.work(with_gradient))

    def judge(self) -> None:
        """Set what depends on other rows and on the fastest rates, those of single runs included."""
        fastest = max(row.work.flops / min(row.seconds) for row in self.rows)
        if fastest > self.probe.best.flops:
            self.probe.best = self.probe.best._replace(flops=fastest)
            self.probe.matrix_name = "a run of this table"
        of_ours = {row.workload: row for row in self.rows if row.by == OURS}
        for row in self.rows:
            row.floor_percent = 100 * self.probe.best.seconds(row.work) / median(row.seconds)
            mine = of_ours.get(row.workload)
            row.faster = median(row.seconds) / median(mine.seconds) if mine and mine.agrees and row.agrees else None


def table(rows: Sequence[Row]) -> str:
    headings = (
        "workload",
        "by",
        "scored",
        "pairs/s",
        "GFLOP/s",
        "ours is",
        "extra MiB",
        "error/allowed",
        "of floor",
        "spread",
        "runs",
    )
    lines = [list(headings)]
    for row in rows:
        time, apart = median(row.seconds), spread(row.seconds)
        lines.append(
            [
                row.workload,
                row.by,
                row.shape,
                f"{row.pairs / time:,.0f}",
                f"{row.work.flops / time / 1e9:.1f}",
                "disagrees" if row.faster is None else f"{row.faster:.2f}x",
                "-" if row.extra_bytes is None else f"{row.extra_bytes / MIB:,.0f}",
                f"{row.error / row.allowed:.2f}",
                f"{row.floor_percent:.0f}%",
                "-" if apart is None else f"{100 * apart:.0f}%",
                str(len(row.seconds)),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) if k < 3 else c.rjust(w) for k, (c, w) in enumerate(zip(x, widths, strict=True))) for x in lines
    )


def unit_rows(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def ragged(words: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Words with 0 beyond lengths, which lie between `least` and all."""
    lengths = torch.randint(least, words.shape[1] + 1, (len(words),), generator=torch.Generator().manual_seed(3))
    return words * (torch.arange(words.shape[1]) < lengths[:, None])[..., None], lengths


def colpali() -> Workload:
    """Pages of 1,030 patches against queries of up to 32 tokens."""
    return Workload("colpali", unit_rows(96, 1030, 128, seed=0), *ragged(unit_rows(32, 32, 128, seed=1), 12))


def regions_and_words() -> Workload:
    """36 regions, captions with COCO's lengths."""
    return Workload("36-regions", *RandomSource(CAPTION_LENGTHS["coco"]).load(96, 240, 5))


def rerank() -> Workload:
    """100 candidates for each of 8 queries."""
    words, lengths = ragged(unit_rows(8, 32, 128, seed=1), 12)
    generator = torch.Generator().manual_seed(2)
    candidates = [torch.randperm(400, generator=generator)[:100] for _ in range(8)]
    pairs = torch.stack([torch.cat(candidates), torch.arange(8).repeat_interleave(100)], 1)
    return Workload("rerank-8x100", unit_rows(400, 1030, 128, seed=0), words, lengths, pairs)


def train() -> Workload:
    """A batch of 32 pages and queries, the loss on the hardest negatives."""
    w = colpali()
    return Workload("train-32", w.regions[:32].contiguous(), w.words, w.lengths, None, True)


WORKLOADS = {
    "colpali": colpali,
    "36-regions": regions_and_words,
    "rerank-8x100": rerank,
    "train-32": train,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, nargs="+", default=list(WORKLOADS), help="(default: all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="N", help=f"for all workloads ({SECONDS:.0f})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    options = parser.parse_args(arguments)
    header: dict[str, Any] = {
        "device": cpu_name(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "instruction_set": ck.build_info()["cpu_instruction_set"],
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    neighbours, clock = Neighbours(), Clock()
    benchmark = Benchmark(clock)
    for place, name in enumerate(options.workload):
        benchmark.measure(WORKLOADS[name](), (options.seconds - clock.now()) / (len(options.workload) - place))
    benchmark.judge()
    best, others = benchmark.probe.best, neighbours.share()
    header["floor"] = f"{best.flops / 1e9:.0f} GFLOP/s ({benchmark.probe.matrix_name}), {best.bytes / 1e9:.0f} GB/s read"
    header["others"] = "unknown" if others is None else f"{others:.0%} of all cores' time went to other processes"
    print("\n".join(f"{name}: {value}" for name, value in header.items()), table(benchmark.rows), sep="\n\n")
    print("", *(f"- {note}" for note in benchmark.notes), sep="\n")
    if options.json:
        content = {"header": header, "rows": [asdict(row) for row in benchmark.rows], "notes": benchmark.notes}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

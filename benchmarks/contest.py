"""Entrants take turns at a workload, each watched for time, memory and agreement with float64."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from floor import PairWork, Probe, Work, pair_work, pairs_work, projection_work, strict_pair_work, training_work
from measure import PeakMemory, available_bytes, max_error, median, relative_error, seconds_of, spread
from peers import (
    COMPILED,
    LOOP,
    REFERENCE,
    Scores,
    attention_by,
    compiled_reference,
    gradients,
    loop_over_captions,
    run,
    time_limit,
)
from report import Report, Row, fill_ratios
from torch import Tensor
from workloads import RandomSource, ScanSource, Spec, Workload, build, loss_gradient

# Part of the free memory that a peer's training step may be expected to take.
MEMORY_SHARE = 0.7
MOST_RUNS = 5
# A first run of more seconds than this is not only a warm-up but counts as a run.
LONG_RUN = 4.0
# Batch of the training step by which eager's time and memory at larger batches are foreseen.
EAGER_PROBE = 32
# Largest batch at which the loop and the compiled reference take a training step.
PEER_BATCH = 64
# What is held against float64: a batch of this many images and captions, or this many pairs of a list.
CHECKED = 8
CHECKED_PAIRS = 24
TOLERANCES = {
    torch.float32: {"scores": 2e-6, "gradients": 1e-5},
    torch.float64: {"scores": 1e-12, "gradients": 1e-11},
}
# Half precisions are held against the error of the reference in the same dtype.
HALF_FACTORS = {"scores": 2.0, "gradients": 3.0}


class Clock:
    """Seconds since the start, and progress lines on stderr."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.start

    def say(self, text: str) -> None:
        print(f"[{self.now():4.0f} s] {text}", file=sys.stderr, flush=True)


@dataclass
class Entrant:
    """One function at one workload: its runs, and what was seen of them."""

    name: str
    scores: Scores
    workload: Workload
    ours: bool = False
    shadow: bool = False
    seconds: list[float] = field(default_factory=list)
    expected: float = 0.0
    extra_bytes: int | None = None
    errors: dict[str, float] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)
    with_gradient: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Oracle:
    """Float64 scores, and for a training step gradients, of a small part of a workload."""

    part: Workload
    scores: Tensor
    upstream: Tensor | None
    gradients: list[Tensor]
    tolerances: dict[str, float]


class Contest:
    """Everything that outlives one workload.

    Args:
        report: receives rows and notes.
        clock: tells when a workload's share is over.
        device, dtype: of every tensor.
        backends: names of this package's backends that take part.
    """

    def __init__(self, report: Report, clock: Clock, device: torch.device, dtype: torch.dtype, backends: Sequence[str]) -> None:
        self.report = report
        self.clock = clock
        self.device = device
        self.dtype = dtype
        self.backends = backends
        clock.say("floor: matrix products and tanh")
        self.probe = Probe(device, dtype)
        self.memory = PeakMemory(device)
        self.compiled = compiled_reference()
        self.compile_seconds = 15.0
        self.compiled_shapes: set[tuple[bool, str]] = set()
        # The fastest rates seen beside the runs of one workload.
        self.rates = self.probe.best
        # Bytes of the reference's training step per pair and row of the pair, and the rows they were measured at.
        self.eager_bytes = 0.0
        self.eager_rows = 0

    def measure(self, spec: Spec, source: RandomSource | ScanSource, seconds: float) -> None:
        """Measure one workload in about `seconds`; its rows reach the report also when interrupted."""
        end = self.clock.now() + seconds
        self.clock.say(f"{spec.name}: {spec.title}")
        self.rates = self.probe.sample()
        workload = build(spec, source, self.dtype, self.device)
        oracle = self.oracle(workload)
        entrants: list[Entrant] = []
        try:
            for entrant in self.enter(spec, workload, end):
                try:
                    if self.first_run(entrant, oracle, end):
                        entrants.append(entrant)
                except Exception as error:  # no memory, or whatever a compiler of kernels can raise
                    self.report.notes.append(f"{spec.name}: {entrant.name} failed: {first_line(error)}")
            self.take_turns(entrants, end)
        finally:
            self.report.rows += [self.row(entrant) for entrant in entrants if entrant.seconds]
            fill_ratios(self.report.rows)

    def enter(self, spec: Spec, workload: Workload, end: float) -> list[Entrant]:
        """Who takes part, and on how much of the workload."""
        reference = attention_by(REFERENCE)
        left = end - self.clock.now()
        if workload.training:
            batch = min(PEER_BATCH, workload.regions.shape[0])
            block = self.in_time(workload.block(batch, batch), [loop_over_captions], left / 2)
            peers = [
                Entrant(LOOP, loop_over_captions, block),
                Entrant(REFERENCE, reference, self.eager_block(workload, end)),
                # Compiling a step takes half a minute: it comes last, where the others have left time for it.
                Entrant(COMPILED, self.compiled, block),
            ]
        else:
            compiling = workload.pairs is None
            # A block that were cut by the clock would flatter whoever profits from small ones: all pairs keep theirs.
            if spec.peer_block is not None:
                block = workload.block(*spec.peer_block)
            else:
                block = self.in_time(workload, [reference, loop_over_captions], left)
            loop_block = block if spec.loop_block is None else workload.block(*spec.loop_block)
            peers = [Entrant(LOOP, loop_over_captions, loop_block), Entrant(REFERENCE, reference, block)]
            if compiling:
                peers.insert(0, Entrant(COMPILED, self.compiled, block))
            if spec.loop_block is not None:
                # A backend that fails here fails again where a note is taken of it.
                with suppress(Exception):
                    workload = self.in_time(workload, [attention_by(name) for name in self.backends], left / 2, loop_block)
        shapes = {peer.workload.shape: peer.workload for peer in peers if peer.workload.shape != workload.shape}
        ours = [Entrant(name, attention_by(name), workload, ours=True) for name in self.backends]
        shadows = [
            Entrant(name, attention_by(name), block, ours=True, shadow=True) for name in self.backends for block in shapes.values()
        ]
        return ours + shadows + peers

    def in_time(self, workload: Workload, peers: Sequence[Scores], seconds: float, few: Workload | None = None) -> Workload:
        """The workload, halved until all `peers` should be through with two runs of it in `seconds`, going by `few` pairs."""
        few = few or part(workload, CHECKED, CHECKED_PAIRS)
        per_pair = sum(self.quickest(scores, few) for scores in peers) / few.pair_count
        while 2 * per_pair * workload.pair_count > seconds:
            half = workload.half()
            if half.pair_count < few.pair_count or half.words.shape[0] < few.words.shape[0]:
                break
            workload = half
        return workload

    def quickest(self, scores: Scores, workload: Workload) -> float:
        """Seconds of the fastest of three runs."""
        return min(seconds_of(lambda: run(scores, workload), self.device, at_least=0) for _ in range(3))

    def eager_block(self, workload: Workload, end: float) -> Workload:
        """The largest batch that eager autograd through the reference holds in memory and finishes in time.

        A step of `EAGER_PROBE` items is measured. Memory grows with pairs x (regions + words), time with pairs.
        """
        reference = attention_by(REFERENCE)
        left = end - self.clock.now()
        small = self.in_time(workload.block(EAGER_PROBE, EAGER_PROBE), [reference], left / 2)
        per_pair = self.quickest(reference, small) / small.pair_count
        with self.memory.watch(REFERENCE) as seen:
            run(reference, small)
        self.see_eager(small, seen["bytes"])
        limit = available_bytes(self.device)
        full = workload.regions.shape[0]
        batches = [full, *(batch for batch in range(full - 1, 7, -1) if batch % 8 == 0)]

        def bytes_of(batch: int) -> float:
            return self.eager_bytes * pair_rows(workload.block(batch, batch))

        fits = [b for b in batches if limit is None or bytes_of(b) <= MEMORY_SHARE * limit] or batches[-1:]
        if limit is not None and fits[0] < full:
            self.report.notes.append(
                f"{workload.name}: eager autograd of the reference is estimated to need "
                f"{bytes_of(full) / 2**30:.1f} GiB at B={full}; {limit / 2**30:.1f} GiB are free, of which "
                f"{MEMORY_SHARE:.0%} may be used: B={fits[0]} is the largest batch that it holds"
            )
        # The loop comes first, at no larger a batch and about as fast.
        left = end - self.clock.now() - per_pair * PEER_BATCH**2
        timely = [b for b in fits if per_pair * b**2 <= left] or batches[-1:]
        if timely[0] < fits[0]:
            self.report.notes.append(
                f"{workload.name}: the reference's step at B={fits[0]} would take {per_pair * fits[0] ** 2:.0f} s, "
                f"more than is left: measured at B={timely[0]} (--workload {workload.name} gives it more time)"
            )
        return workload.block(timely[0], timely[0])

    def see_eager(self, workload: Workload, peak_bytes: int | None) -> None:
        """Learn from a measured step. A larger one counts alone: what does not grow weighs less in it."""
        if peak_bytes is not None and pair_rows(workload) > self.eager_rows:
            self.eager_rows = pair_rows(workload)
            self.eager_bytes = peak_bytes / self.eager_rows

    def oracle(self, workload: Workload) -> Oracle:
        """Float64 results of a small part of the workload, and what error is allowed."""
        few = part(workload, CHECKED, CHECKED_PAIRS)
        reference = attention_by(REFERENCE)
        with torch.no_grad():
            exact = reference(few.double())
        upstream = loss_gradient(exact) if workload.training else None
        slopes = [] if upstream is None else gradients(reference, few.double(), upstream)
        oracle = Oracle(few, exact, upstream, slopes, TOLERANCES.get(self.dtype, {}))
        if not oracle.tolerances:
            with torch.no_grad():
                half = {"scores": max_error(reference(few), exact)}
            if upstream is not None:
                half["gradients"] = gradient_error(reference, oracle, few)
            oracle.tolerances = {name: HALF_FACTORS[name] * error for name, error in half.items()}
        return oracle

    def first_run(self, entrant: Entrant, oracle: Oracle, end: float) -> bool:
        """Memory, agreement with float64, and a first idea of the time; False if the entrant drops out, with a note."""
        compiled = entrant.name == COMPILED
        if compiled and not self.compile(entrant, end):
            return False
        self.clock.say(f"  {entrant.name}, {entrant.workload.shape}")
        results: list[Tensor] = []
        with self.memory.watch(entrant.name) as seen:
            entrant.expected = seconds_of(lambda: results.append(run(entrant.scores, entrant.workload)), self.device, 0)
            result = results.pop()
            small = result[: len(oracle.scores)]
            small = small[:, : oracle.scores.shape[1]].clone() if result.dim() == 2 else small.clone()
            if entrant.workload.training:
                entrant.with_gradient = [tuple(pair) for pair in loss_gradient(result).nonzero().tolist()]
            del result
        entrant.extra_bytes = seen["bytes"]
        # A GPU's kernels may be compiled in the first run.
        if entrant.expected > LONG_RUN and self.device.type == "cpu":
            entrant.seconds.append(entrant.expected)
        if entrant.name == REFERENCE and entrant.workload.training:
            self.see_eager(entrant.workload, seen["bytes"])
        entrant.tolerances = oracle.tolerances
        entrant.errors["scores"] = max_error(small, oracle.scores)
        if entrant.workload.training:
            # A compiled step has one shape only, its batch's.
            entrant.errors["gradients"] = gradient_error(entrant.scores, oracle, entrant.workload if compiled else oracle.part)
        return True

    def compile(self, entrant: Entrant, end: float) -> bool:
        """Compile for the entrant's shape within the workload's share; False, with a note, if that fails."""
        left = end - self.clock.now()
        place = f"{COMPILED} is not in the table for {entrant.workload.name}"
        shape = entrant.workload.training, f"{entrant.workload.regions.shape} {entrant.workload.words.shape}"
        if shape in self.compiled_shapes:
            return True
        needed = self.compile_seconds * (2 if entrant.workload.training else 1)
        if left < needed:
            self.report.notes.append(f"{place}: about {needed:.0f} s to compile, {max(left, 0):.0f} s left")
            return False
        self.clock.say(f"  compiling the reference, {entrant.workload.shape}")
        start = self.clock.now()
        try:
            with time_limit(left):
                run(entrant.scores, entrant.workload)
        except Exception as error:  # whatever a compiler and its toolchain can raise
            self.report.notes.append(f"{place}: {first_line(error)}")
            return False
        if not entrant.workload.training:
            self.compile_seconds = self.clock.now() - start
        self.compiled_shapes.add(shape)
        return True

    def take_turns(self, entrants: Sequence[Entrant], end: float) -> None:
        """A B A B: everybody once, then again, as long as the share lasts; everybody at least once."""
        for turn in range(MOST_RUNS):
            self.clock.say(f"  turn {turn + 1} of {MOST_RUNS}")
            turns = [e for e in entrants if len(e.seconds) < MOST_RUNS]
            for entrant in turns:
                if entrant.seconds and self.clock.now() + entrant.expected > end:
                    continue
                self.rates = self.rates.faster(self.probe.sample())
                entrant.seconds.append(seconds_of(lambda e=entrant: run(e.scores, e.workload), self.device))
                entrant.expected = entrant.seconds[-1]
            if self.clock.now() > end:
                break

    def row(self, entrant: Entrant) -> Row:
        workload = entrant.workload
        seconds = median(entrant.seconds)
        floors = [self.work(workload, entrant.with_gradient, count) for count in (pair_work, strict_pair_work)]
        return Row(
            workload.name,
            entrant.name,
            entrant.ours,
            workload.shape,
            workload.words.shape[1],
            workload.pair_count,
            len(entrant.seconds),
            seconds,
            spread(entrant.seconds),
            entrant.extra_bytes,
            entrant.errors,
            entrant.tolerances,
            *(100 * self.rates.seconds(work) / seconds for work in floors),
            shadow=entrant.shadow,
        )

    def work(self, workload: Workload, with_gradient: list[tuple[int, int]], count: PairWork) -> Work:
        """Arithmetic of one run over real lengths, projections included unless the gallery comes projected."""
        images, m, width = workload.regions.shape
        hidden = workload.weights.region_score.shape[0]
        regions, words = [m] * images, workload.word_lengths.tolist()
        pairs = None if workload.pairs is None else [tuple(pair) for pair in workload.pairs.tolist()]
        forward = pairs_work(regions, words, pairs, width, hidden, count)
        projected = 0 if workload.gallery is not None else sum(regions)
        projection = projection_work(projected, sum(words), width, hidden)
        if not workload.training:
            return forward.plus(projection)
        backward = pairs_work(regions, words, with_gradient, width, hidden, count)
        return training_work(forward, projection, backward)


def part(workload: Workload, size: int, pairs: int) -> Workload:
    """The first `size` images and captions, or the first `pairs` of a list."""
    return workload.block(size, size) if workload.pairs is None else workload.first_pairs(pairs)


def first_line(error: Exception) -> str:
    """Of its message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def pair_rows(workload: Workload) -> int:
    """Pairs times the rows of one pair, padding included: what the reference's memory is proportional to."""
    return workload.pair_count * (workload.regions.shape[1] + workload.words.shape[1])


def gradient_error(scores: Scores, oracle: Oracle, workload: Workload) -> float:
    """Largest relative L2 error over the gradients of regions, words and the seven weights.

    Args:
        scores: whose gradients.
        oracle: what they should be on its part of the workload.
        workload: that part, or a batch that begins with it: the pairs outside then get no gradient.
    """
    assert oracle.upstream is not None
    images, captions, words = oracle.part.regions.shape[0], oracle.part.words.shape[0], oracle.part.words.shape[1]
    upstream = oracle.upstream.new_zeros(workload.regions.shape[0], workload.words.shape[0])
    upstream[:images, :captions] = oracle.upstream
    regions_gradient, words_gradient, *rest = gradients(scores, workload, upstream)
    result = [regions_gradient[:images], words_gradient[:captions, :words], *rest]
    return max(relative_error(one, exact) for one, exact in zip(result, oracle.gradients, strict=True))

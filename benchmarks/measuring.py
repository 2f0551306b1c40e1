"""Implementations take turns at a workload, each watched for time, memory and agreement with float64."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from baselines import (
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
from comparison import LeftOut, left_out
from floor import Probe, Work, list_reading, pairs_work, projection_work, training_work
from measure import PeakMemory, available_bytes, max_error, median, relative_error, seconds_of, spread, spread_errors
from report import Report, Row, fill_ratios
from torch import Tensor
from workloads import RandomSource, ScanSource, Spec, Workload, build, loss_gradient

# Part of the free memory that a baseline's training step may be expected to take.
MEMORY_SHARE = 0.7
MOST_RUNS = 5
# A first run of more seconds than this is not only a warm-up but counts as a run.
LONG_RUN = 4.0
# Batch of the training step by which eager's time and memory at larger batches are foreseen.
EAGER_PROBE = 32
# Largest batch at which the loop and the compiled reference take a training step.
BASELINE_BATCH = 64
# What is held against float64: a batch of so many images and captions, or so many pairs of a list.
CHECKED = (8, 24)
TOLERANCES = {
    torch.float32: {"scores": 2e-6, "gradients": 1e-5},
    torch.float64: {"scores": 1e-12, "gradients": 1e-11},
}
# The captions for whose gradients the tolerance is meant; shorter ones may err by this factor more than the reference does.
LEAST_WORDS = 8
SHORT_FACTOR = 2.0
# Half precisions are held against the errors of the reference in the same dtype. The largest error says nothing there, since
# short captions jump; percentiles need more pairs.
HALF_FACTORS = {"rms": 2.0, "p99": 2.0, "gradients": 3.0}
HALF_CHECKED = (16, 100)


class Clock:
    """Seconds since the start, and progress lines on stderr."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.start

    def say(self, text: str) -> None:
        print(f"[{self.now():4.0f} s] {text}", file=sys.stderr, flush=True)


@dataclass
class Implementation:
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
    left_out: dict[str, int] = field(default_factory=dict)
    with_gradient: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Oracle:
    """Float64 scores, and for a training step gradients, of a small part of a workload, and what is not compared with them."""

    part: Workload
    scores: Tensor
    left_out: LeftOut
    upstream: Tensor | None
    gradients: list[Tensor]
    tolerances: dict[str, float] = field(default_factory=dict)


class Benchmark:
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
        clock.say("floor: matrix products, tanh and reading")
        self.probe = Probe(device, dtype)
        self.memory = PeakMemory(device)
        self.compiled = compiled_reference()
        self.compile_seconds = 15.0
        self.compiled_shapes: set[tuple[bool, str]] = set()
        # By hidden width: pairs times rows of the largest training step of the reference, and its bytes for each of them.
        self.eager: dict[int, tuple[int, float]] = {}

    def measure(self, spec: Spec, source: RandomSource | ScanSource, seconds: float) -> None:
        """Measure one workload in about `seconds`; its rows reach the report also when interrupted."""
        end = self.clock.now() + seconds
        self.clock.say(f"{spec.name}: {spec.title}")
        self.probe.sample()
        workload = build(spec, source, self.dtype, self.device)
        oracle = self.oracle(workload)
        self.clock.say(f"  {oracle.left_out.text()}")
        taking_part: list[Implementation] = []
        try:
            for one in self.implementations(spec, workload, end):
                try:
                    if self.first_run(one, oracle, end):
                        taking_part.append(one)
                except Exception as error:  # no memory, or whatever a compiler of kernels can raise
                    self.report.notes.append(f"{spec.name}: {one.name} failed: {first_line(error)}")
            self.take_turns(taking_part, end)
        finally:
            self.report.rows += [self.row(one) for one in taking_part if one.seconds]
            fill_ratios(self.report.rows)

    def implementations(self, spec: Spec, workload: Workload, end: float) -> list[Implementation]:
        """Those that take part, each with as much of the workload as it is to score."""
        reference = attention_by(REFERENCE)
        left = end - self.clock.now()
        if workload.training:
            batch = min(BASELINE_BATCH, workload.regions.shape[0])
            block = self.in_time(workload.block(batch, batch), [loop_over_captions], left / 2)
            baselines = [
                Implementation(LOOP, loop_over_captions, block),
                Implementation(REFERENCE, reference, self.eager_block(workload, end)),
                # Compiling a step takes half a minute: it comes last, where the others have left time for it.
                Implementation(COMPILED, self.compiled, block),
            ]
        else:
            compiling = workload.pairs is None
            # A block that were cut by the clock would flatter whoever profits from small ones: all pairs keep theirs.
            if spec.baseline_block is not None:
                block = workload.block(*spec.baseline_block)
            else:
                block = self.in_time(workload, [reference, loop_over_captions], left)
            loop_block = block if spec.loop_block is None else workload.block(*spec.loop_block)
            baselines = [Implementation(LOOP, loop_over_captions, loop_block), Implementation(REFERENCE, reference, block)]
            if compiling:
                baselines.insert(0, Implementation(COMPILED, self.compiled, block))
            if spec.loop_block is not None:
                # A backend that fails here fails again where a note is taken of it.
                with suppress(Exception):
                    workload = self.in_time(workload, [attention_by(name) for name in self.backends], left / 2, loop_block)
        shapes = {baseline.workload.shape: baseline.workload for baseline in baselines if baseline.workload.shape != workload.shape}
        ours = [Implementation(name, attention_by(name), workload, ours=True) for name in self.backends]
        shadows = [
            Implementation(name, attention_by(name), block, ours=True, shadow=True)
            for name in self.backends
            for block in shapes.values()
        ]
        return ours + shadows + baselines

    def in_time(self, workload: Workload, every: Sequence[Scores], seconds: float, few: Workload | None = None) -> Workload:
        """The workload, halved until all of `every` should be through with two runs of it in `seconds`, going by `few` pairs."""
        few = few or self.few(workload)
        per_pair = sum(self.quickest(scores, few) for scores in every) / few.pair_count
        while 2 * per_pair * workload.pair_count > seconds:
            half = workload.half()
            if half.pair_count < few.pair_count or half.words.shape[0] < few.words.shape[0]:
                break
            workload = half
        return workload

    def few(self, workload: Workload) -> Workload:
        """The part that is held against float64."""
        return part(workload, *(CHECKED if self.dtype in TOLERANCES else HALF_CHECKED))

    def quickest(self, scores: Scores, workload: Workload) -> float:
        """Seconds of the fastest of three runs."""
        return min(self.timed(lambda: run(scores, workload), workload, 0) for _ in range(3))

    def timed(self, call: Callable[[], object], workload: Workload, at_least: float = 0.2) -> float:
        """Mean seconds of a call. Queries name other images each time, so that runs of a list begin with empty caches."""
        before = None if workload.pairs is None else self.probe.empty_caches
        return seconds_of(call, self.device, at_least, before)

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
            return self.eager[hidden_width(workload)][1] * pair_rows(workload.block(batch, batch))

        fits = [b for b in batches if limit is None or bytes_of(b) <= MEMORY_SHARE * limit] or batches[-1:]
        if limit is not None and fits[0] < full:
            self.report.notes.append(
                f"{workload.name}: eager autograd of the reference is estimated to need "
                f"{bytes_of(full) / 2**30:.1f} GiB at B={full}; {limit / 2**30:.1f} GiB are free, of which "
                f"{MEMORY_SHARE:.0%} may be used: B={fits[0]} is the largest batch that it holds"
            )
        # The loop comes first, at no larger a batch and about as fast.
        left = end - self.clock.now() - per_pair * BASELINE_BATCH**2
        timely = [b for b in fits if per_pair * b**2 <= left] or batches[-1:]
        if timely[0] < fits[0]:
            self.report.notes.append(
                f"{workload.name}: the reference's step at B={fits[0]} would take {per_pair * fits[0] ** 2:.0f} s, "
                f"more than is left: measured at B={timely[0]} (--workload {workload.name} gives it more time)"
            )
        return workload.block(timely[0], timely[0])

    def see_eager(self, workload: Workload, peak_bytes: int | None) -> None:
        """Learn from a measured step. A larger one counts alone: what does not grow weighs less in it."""
        rows, hidden = pair_rows(workload), hidden_width(workload)
        if rows > self.eager.get(hidden, (0, 0.0))[0]:
            self.eager[hidden] = rows, (peak_bytes or 0) / rows

    def oracle(self, workload: Workload) -> Oracle:
        """Float64 results of a small part of the workload, and what error is allowed."""
        few = self.few(workload)
        reference = attention_by(REFERENCE)
        exact = few.double()
        with torch.no_grad():
            scores = reference(exact)
        excluded = LeftOut(*torch.zeros(2, *scores.shape, dtype=torch.bool, device=scores.device))
        if self.dtype in TOLERANCES:
            excluded = left_out(few.regions, few.words, few.weights, None, few.word_lengths, few.pairs)
        upstream = loss_gradient(scores).masked_fill(excluded.gradients, 0) if workload.training else None
        slopes = [] if upstream is None else gradients(reference, exact, upstream)
        oracle = Oracle(few, scores, excluded, upstream, slopes)
        oracle.tolerances = self.tolerances(oracle)
        return oracle

    def tolerances(self, oracle: Oracle) -> dict[str, float]:
        """What errors may be, by name."""
        few, reference = oracle.part, attention_by(REFERENCE)
        of_reference = {"gradients": gradient_error(reference, oracle, few)} if few.training else {}
        if self.dtype in TOLERANCES:
            allowed = dict(TOLERANCES[self.dtype])
            if few.training and int(few.word_lengths.min()) < LEAST_WORDS:
                allowed["gradients"] = max(allowed["gradients"], SHORT_FACTOR * of_reference["gradients"])
            return allowed
        with torch.no_grad():
            of_reference |= self.score_errors(reference(few), oracle)
        return {name: HALF_FACTORS[name] * error for name, error in of_reference.items()}

    def score_errors(self, scores: Tensor, oracle: Oracle) -> dict[str, float]:
        """By name, as in the tolerances."""
        if self.dtype not in TOLERANCES:
            return dict(zip(("rms", "p99"), spread_errors(scores, oracle.scores), strict=True))
        kept = ~oracle.left_out.scores
        return {"scores": max_error(scores[kept], oracle.scores[kept])}

    def first_run(self, one: Implementation, oracle: Oracle, end: float) -> bool:
        """Memory, agreement with float64, and a first idea of the time; False if it drops out, with a note."""
        compiled, training = one.name == COMPILED, one.workload.training
        if compiled and not self.compile(one, end):
            return False
        self.clock.say(f"  {one.name}, {one.workload.shape}")
        results: list[Tensor] = []
        with self.memory.watch(one.name) as seen:
            one.expected = self.timed(lambda: results.append(run(one.scores, one.workload)), one.workload, 0)
            result = results.pop()
            small = result[: len(oracle.scores)]
            small = small[:, : oracle.scores.shape[1]].clone() if result.dim() == 2 else small.clone()
            if training:
                one.with_gradient = [tuple(pair) for pair in loss_gradient(result).nonzero().tolist()]
            del result
        one.extra_bytes = seen["bytes"]
        # A GPU's kernels may be compiled in the first run.
        if one.expected > LONG_RUN and self.device.type == "cpu":
            one.seconds.append(one.expected)
        if one.name == REFERENCE and training:
            self.see_eager(one.workload, seen["bytes"])
        one.tolerances = oracle.tolerances
        one.errors = self.score_errors(small, oracle)
        one.left_out = dict.fromkeys(one.errors, oracle.left_out.score_count)
        if training:
            # A compiled step has one shape only, its batch's.
            one.errors["gradients"] = gradient_error(one.scores, oracle, one.workload if compiled else oracle.part)
            one.left_out["gradients"] = oracle.left_out.gradient_count
        return True

    def compile(self, one: Implementation, end: float) -> bool:
        """Compile for its shape within the workload's share; False, with a note, if that fails."""
        workload, left = one.workload, end - self.clock.now()
        place = f"{COMPILED} is not in the table for {workload.name}"
        shape = workload.training, f"{workload.regions.shape} {workload.words.shape} {hidden_width(workload)}"
        if shape in self.compiled_shapes:
            return True
        needed = self.compile_seconds * (2 if workload.training else 1)
        if left < needed:
            self.report.notes.append(f"{place}: about {needed:.0f} s to compile, {max(left, 0):.0f} s left")
            return False
        self.clock.say(f"  compiling the reference, {workload.shape}")
        start = self.clock.now()
        try:
            with time_limit(left):
                run(one.scores, workload)
        except Exception as error:  # whatever a compiler and its toolchain can raise
            self.report.notes.append(f"{place}: {first_line(error)}")
            return False
        if not workload.training:
            self.compile_seconds = self.clock.now() - start
        self.compiled_shapes.add(shape)
        return True

    def take_turns(self, taking_part: Sequence[Implementation], end: float) -> None:
        """A B A B: everybody once, then again, as long as the share lasts; everybody at least once."""
        for turn in range(MOST_RUNS):
            self.clock.say(f"  turn {turn + 1} of {MOST_RUNS}")
            for one in taking_part:
                if len(one.seconds) >= MOST_RUNS or (one.seconds and self.clock.now() + one.expected > end):
                    continue
                self.probe.sample()
                one.seconds.append(self.timed(lambda one=one: run(one.scores, one.workload), one.workload))
                one.expected = one.seconds[-1]
            if self.clock.now() > end:
                break

    def row(self, one: Implementation) -> Row:
        workload = one.workload
        return Row(
            workload.name,
            one.name,
            one.ours,
            workload.shape,
            workload.words.shape[1],
            workload.pair_count,
            len(one.seconds),
            median(one.seconds),
            spread(one.seconds),
            one.extra_bytes,
            one.errors,
            one.tolerances,
            one.left_out,
            work_of(workload, one.with_gradient)._asdict(),
            shadow=one.shadow,
        )


def work_of(workload: Workload, with_gradient: Sequence[tuple[int, int]]) -> Work:
    """Of one run over real lengths, projections included unless the gallery comes projected."""
    images, m, width = workload.regions.shape
    hidden = hidden_width(workload)
    regions, words = [m] * images, workload.word_lengths.tolist()
    pairs = None if workload.pairs is None else [tuple(pair) for pair in workload.pairs.tolist()]
    forward = pairs_work(regions, words, pairs, width, hidden)
    projection = projection_work(0 if workload.gallery is not None else sum(regions), sum(words), width, hidden)
    if workload.training:
        return training_work(forward, projection, pairs_work(regions, words, with_gradient, width, hidden))
    work = forward.plus(projection)
    if pairs is None:
        return work
    return work.plus(list_reading(regions, words, pairs, width, hidden, workload.regions.element_size()))


def hidden_width(workload: Workload) -> int:
    return workload.weights.region_score.shape[0]


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

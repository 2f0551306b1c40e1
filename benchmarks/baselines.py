"""Who computes the scores: the batched reference, the loop over captions, the compiled reference, and our backends.

Each is a function from a `Workload` to its scores, (I, T) or (P,), differentiable where a training step asks for it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from workloads import Workload, hardest_negative_loss, learned

import caan_kernels as ck

Scores = Callable[[Workload], Tensor]

REFERENCE = "reference"
LOOP = "caption loop"
COMPILED = "compiled"


def attention_by(backend: str) -> Scores:
    """`caan_kernels.context_attention` on one backend; "reference" is the batched baseline, the function the tests use."""

    def scores(workload: Workload) -> Tensor:
        return ck.context_attention(
            workload.regions if workload.gallery is None else workload.gallery,
            workload.words,
            workload.weights,
            word_lengths=workload.word_lengths,
            pairs=workload.pairs,
            backend=backend,
        )

    return scores


def loop_over_captions(workload: Workload) -> Tensor:
    """One caption at a time against all its images at once, cut to its real length, as in SCAN's code.

    What depends on the image alone (V affinity, V Q1, V Q4) is done before the loop, V affinity of a pair list for its
    candidates inside. Scores are float64 for float64, else float32.
    """
    w, regions = workload.weights, workload.regions
    hidden = w.region_score.shape[0]
    gallery = workload.gallery
    products = regions @ torch.cat([w.region_intra, w.word_inter], 1) if gallery is None else gallery.products
    lengths = workload.word_lengths.tolist()
    if workload.pairs is None:
        aligned = regions @ w.affinity
        VQ1, VQ4 = products.split(hidden, dim=2)
        columns = [one_caption(regions, aligned, VQ1, VQ4, workload.words[t, :n], w) for t, n in enumerate(lengths)]
        return torch.stack(columns, 1)
    captions, place = workload.pairs[:, 1], torch.arange(workload.pair_count)
    parts, order = [], []
    for t in captions.unique().tolist():
        rows = place[captions == t]
        V, VQ = (x.index_select(0, workload.pairs[rows, 0].to(x.device)) for x in (regions, products))
        parts.append(one_caption(V, V @ w.affinity, *VQ.split(hidden, dim=2), workload.words[t, : lengths[t]], w))
        order.append(rows)
    return torch.cat(parts)[torch.cat(order).argsort().to(regions.device)]


def one_caption(regions: Tensor, aligned: Tensor, vq1: Tensor, vq4: Tensor, words: Tensor, w: ck.ContextAttentionWeights) -> Tensor:
    """(I,) scores of one caption.

    Args:
        regions: (I, m, D), V.
        aligned: (I, m, D), V affinity.
        vq1, vq4: (I, m, H), V region_intra and V word_inter.
        words: (n, D), U, without padding.
        w: the learned tensors.
    """
    # In float16 ε is 0.
    wide = torch.promote_types(words.dtype, torch.float32)
    positive = torch.tanh(aligned @ words.T).relu().to(wide)
    attention = F.normalize(positive, dim=1, eps=1e-8), F.normalize(positive, dim=2, eps=1e-8).mT
    C, Rt = (x.to(words.dtype) for x in attention)
    C_unit, Rt_unit = (F.normalize(x, dim=2, eps=1e-8).to(words.dtype) for x in attention)
    region_context = (C_unit @ C_unit.mT) @ vq1 + C @ (words @ w.region_inter)
    word_context = (Rt_unit @ Rt_unit.mT) @ (words @ w.word_intra) + Rt @ vq4
    f = torch.softmax(torch.tanh(region_context) @ w.region_score, dim=1)
    g = torch.softmax(torch.tanh(word_context) @ w.word_score, dim=1)
    pooled_regions = (f[:, None] @ regions).squeeze(1)
    return (pooled_regions * (g @ words)).sum(1).to(wide)


class CompileTimeout(Exception):
    """Compilation took longer than it was given."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `CompileTimeout` once `seconds` have gone by; main thread only, without effect where SIGALRM is missing."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise CompileTimeout(f"not compiled after {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def compiled_reference() -> Scores:
    """torch.compile (inductor, static shapes) of the reference; its first call on a shape compiles."""

    def flat(regions: Tensor, words: Tensor, lengths: Tensor, *weights: Tensor) -> Tensor:
        packed = ck.ContextAttentionWeights(*weights)
        return ck.context_attention(regions, words, packed, word_lengths=lengths, backend="reference")

    compiled = torch.compile(flat, dynamic=False, fullgraph=True)

    def scores(workload: Workload) -> Tensor:
        return compiled(workload.regions, workload.words, workload.word_lengths, *learned(workload.weights))

    return scores


def run(scores: Scores, workload: Workload) -> Tensor:
    """One run of the workload: the scores, or, for a training step, forward, loss and backward; returns the scores."""
    if workload.training:
        leaves, result = scores_of_leaves(scores, workload)
        torch.autograd.grad(hardest_negative_loss(result), leaves)
        return result.detach()
    with torch.no_grad():
        return scores(workload)


def gradients(scores: Scores, workload: Workload, upstream: Tensor) -> list[Tensor]:
    """Derivatives of sum(upstream * scores) with respect to regions, words and the seven weights, in that order."""
    leaves, result = scores_of_leaves(scores, workload)
    return list(torch.autograd.grad(result, leaves, upstream.to(result.device, result.dtype)))


def scores_of_leaves(scores: Scores, workload: Workload) -> tuple[list[Tensor], Tensor]:
    leaves = [x.detach().requires_grad_() for x in (workload.regions, workload.words, *learned(workload.weights))]
    weights = ck.ContextAttentionWeights(*leaves[2:])
    return leaves, scores(replace(workload, regions=leaves[0], words=leaves[1], weights=weights))

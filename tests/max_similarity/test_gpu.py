"""What the GPU backends alone have: calls in pieces, tiles of half precision, and indices that nobody has looked at."""

from dataclasses import replace

import cases
import pytest
import torch

from caan_kernels.core.gpu import checks as core_checks
from caan_kernels.core.gpu import limits
from caan_kernels.core.records import flatten
from caan_kernels.max_similarity.call import CallGradient
from caan_kernels.max_similarity.gpu import checks, launch

from .problems import KERNELS, SLOW, problem, run

ops = torch.ops.caan_kernels
pytestmark = [
    pytest.mark.skipif(not SLOW, reason="for the emulator and the interpreter"),
    pytest.mark.parametrize("backend", KERNELS),
    pytest.mark.usefixtures("sums_in_one_order"),
]
# Documents that begin and end anywhere in a tile of rows, and more query rows than one tile has.
SHAPE = (5, 36, 7, 13, 24) if not cases.INTERPRETED else (3, 9, 4, 7, 8)


@pytest.mark.parametrize("over", ["words", "regions"])
@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_pieces(backend, over, pairs, monkeypatch):
    """A call that is gone through in pieces has the bits of one that is not."""
    case = problem(SHAPE, torch.float16, pairs=pairs)
    expected = run(case, over=over, backend=backend)
    numbers = {"LARGEST_BYTES": 16 * SHAPE[1], "QUERY_ROWS": 2 * SHAPE[1], "SUMS_BYTES": 3 * 4 * SHAPE[1] * SHAPE[4]}
    for name, value in (numbers | {"PLACES_BYTES": 16 * SHAPE[1], "MOST_ORDERED": 9, "MOST_PLANNED": 5}).items():
        assert value < getattr(launch, name)
        monkeypatch.setattr(launch, name, value)
    cases.assert_same(expected, run(case, over=over, backend=backend))
    monkeypatch.setattr(limits, "LONGEST", 0.0)
    cases.assert_same(expected, run(case, over=over, backend=backend))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_with_its_item(backend, value):
    case = problem((3, 40, 4, 21, 16), torch.float16)
    expected = case.call(backend=backend)
    case.regions[1, 17, 7], case.words[3, case.word_lengths[3] - 1, 5] = value, value
    found = case.call(backend=backend)
    if value != value:
        assert found[1, case.word_lengths > 0].isnan().all() and found[case.region_lengths > 0, 3].isnan().all()
    found[1], found[:, 3], expected[1], expected[:, 3] = 0, 0, 0, 0
    assert torch.equal(found, expected)


def test_the_first_nan_is_taken(backend):
    case = problem((1, 90, 1, 3, 8), torch.float16, lengths=False)
    case.regions[0, 11], case.regions[0, 70] = torch.nan, torch.nan
    _, gradients = run(case, torch.ones(1, 1), backend=backend)
    assert gradients["words"].isnan().all()
    assert torch.equal(gradients["regions"][0].any(-1).nonzero().flatten(), torch.tensor([11]))


@pytest.mark.parametrize("pairs", [None, [[0, 0], [2, 1], [3, 1], [-1, 2], [1, 9], [1, 2], [4, 4]]], ids=["all_pairs", "pair_list"])
def test_indices_that_nobody_has_looked_at(backend, pairs, monkeypatch):
    """As on a GPU: what is out of range scores NaN, is no address, and has no gradient."""
    for module in (core_checks, checks):
        monkeypatch.setattr(module, "check_values", lambda *arguments: None)
    case = problem((5, 9, 7, 13, 24), torch.float16)
    listed = None if pairs is None else torch.tensor(pairs)
    expected = case.call(backend=backend)
    right = replace(case, region_lengths=case.region_lengths.clone(), word_lengths=case.word_lengths.clone(), pairs=listed)
    right.region_lengths[0], right.word_lengths[1] = 10, -1
    call = right.packed(backend)
    scores = ops.max_similarity(*flatten(call))
    gradients = ops.max_similarity_backward(*flatten(CallGradient(torch.ones_like(scores), call, True, True)))
    if pairs is None:
        wrong = torch.zeros_like(scores, dtype=torch.bool)
        wrong[0], wrong[:, 1] = True, True
    else:
        wrong = torch.tensor([True, True, True, True, True, False, False])
        expected = expected[tuple(listed.clamp(0, 4).T)]
    assert torch.equal(scores.isnan(), wrong) and torch.equal(scores[~wrong], expected[~wrong])
    assert not gradients[0][0].any() and not gradients[1][1].any() and all(x.isfinite().all() for x in gradients)

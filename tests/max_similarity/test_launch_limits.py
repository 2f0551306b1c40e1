"""No launch takes longer than 50 ms on an H100, by estimate: kernels are left out, and tensors have no memory."""

import pytest
import torch
from launch_limits import MOST_SECONDS, Recorded, all_pairs_or_listed, both_dtypes, of_no_memory

from caan_kernels.core import cuda as core_cuda
from caan_kernels.core.records import Items
from caan_kernels.max_similarity import cuda
from caan_kernels.max_similarity.call import Call, Options
from caan_kernels.max_similarity.gpu import launch, limits

# Images, regions, captions, words and width.
SHAPES = {
    "coco": (5000, 36, 25_000, 16, 1024),
    "narrow": (5000, 36, 25_000, 16, 8),
    "one_row": (300_000, 1, 3000, 1, 8),
    "wide": (1000, 1030, 5000, 32, 4096),
    "one_image": (1, 36, 300_000, 16, 1024),
    "one_caption": (300_000, 36, 1, 16, 1024),
}
all_shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
both_sides = pytest.mark.parametrize("over_regions", [False, True], ids=["over_words", "over_regions"])


def call_of(shape, dtype, listed, over_regions):
    images, m, captions, n, width = shape
    sides = Items(of_no_memory(dtype, images, m, width), None), Items(of_no_memory(dtype, captions, n, width), None)
    pairs = of_no_memory(torch.int64, listed, 2) if listed else None
    return Call(*sides, pairs, Options(over_regions, mean=False), "cuda"), of_no_memory(torch.float32, images, captions)


@all_shapes
@both_dtypes
@all_pairs_or_listed
@both_sides
def test_scores(shape, dtype, listed, over_regions):
    call, scores = call_of(shape, dtype, listed, over_regions)
    count = 0
    for part, some in launch.pieces_of(call, scores[0, 0].expand(listed) if listed else scores):
        count += some.numel()
        queries, documents = (x.features for x in (part[:2] if over_regions else part[1::-1]))
        (rows, width), of_document = queries.shape[1:], documents.shape[1]
        if listed:
            seconds = len(part.pairs) * limits.largest_of_pair(rows, of_document, width, dtype)
        else:
            seconds = len(documents) * limits.largest(len(queries) * rows, of_document, width, dtype)
        assert seconds <= MOST_SECONDS
    assert count == (listed or scores.numel())


@all_shapes
@both_dtypes
@all_pairs_or_listed
@both_sides
def test_gradients(shape, dtype, listed, over_regions, monkeypatch):
    recorded = Recorded(
        cuda_plan=core_cuda._PlanLaunch, cuda_plan_schedule=core_cuda._ScheduleLaunch, cuda_find_places=cuda.PlacesLaunch
    )
    for module in (cuda, core_cuda):
        monkeypatch.setattr(module, "_ops", recorded)
    # What nobody plans names any place.
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    images, m, captions, n, width = shape
    call, grad = call_of((min(images, 100), m, min(captions, 6000), n, width), dtype, listed, over_regions)
    if listed:
        launch._add_list(call, of_no_memory(torch.float32, listed), [None, None])
    else:
        launch._add_table(call, grad, [None, None])
    found = [x for x in recorded.records if isinstance(x, cuda.PlacesLaunch)]
    assert sum(len(x.search.pairs) for x in found) == (listed or grad.numel())
    for search in (x.search for x in found):
        (count, rows, _), (documents, of_document, _) = search.queries.features.shape, search.documents.features.shape
        in_one_sum = min(len(search.pairs), len(search.pairs) if listed else max(count, documents))
        assert in_one_sum * limits.step_of_sum(rows) <= MOST_SECONDS
        assert len(search.pairs) * limits.largest_of_pair(rows, of_document, width, dtype) <= MOST_SECONDS

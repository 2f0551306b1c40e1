"""What the operator takes and gives goes through torch.save and torch.export, and comes back."""

import cases
import pytest
import torch

import caan_kernels as ck

pytestmark = pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="no backend matters here")


def records():
    case = cases.problem("odd", torch.float32, lengths=False)
    regions, words = case.project()
    maps = ck.attention_maps(regions, words, case.weights, pairs=torch.tensor([[0, 0]]))
    return {"weights": case.weights, "regions": regions, "words": words, "maps": maps}


@pytest.mark.parametrize("name", ["weights", "regions", "words", "maps"])
def test_torch_load_as_it_is_by_default(name, tmp_path):
    record = records()[name]
    torch.save(record, tmp_path / "record.pt")
    found = torch.load(tmp_path / "record.pt")
    assert type(found) is type(record)
    assert all(x is y or torch.equal(x, y) for x, y in zip(found, record, strict=True))


class Scores(torch.nn.Module):
    def forward(self, regions, words, weights):
        return ck.context_attention(regions, words, weights)


@pytest.mark.parametrize("projected", [False, True], ids=["features", "projected"])
def test_an_exported_program_is_saved_with_records_as_arguments(projected, tmp_path):
    case = cases.problem("odd", torch.float32, lengths=False)
    arguments = (*(case.project() if projected else (case.regions, case.words)), case.weights)
    torch.export.save(torch.export.export(Scores(), arguments), tmp_path / "scores.pt2")
    loaded = torch.export.load(tmp_path / "scores.pt2").module()
    assert torch.equal(loaded(*arguments), Scores()(*arguments))

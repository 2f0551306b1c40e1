"""Region features on disk: `{split}_ims.npy`, mapped and never loaded whole."""

import math
from pathlib import Path

import numpy as np

from ..errors import FormatError, MissingFileError, NonFiniteError, TruncatedFileError, WidthError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class RegionFile:
    """A .npy file of (N, R, F) region features, float32 or float16, memory-mapped.

    The header is checked at once, values when a row is read. An instance can be sent to another process, which maps the
    file anew.

    Args:
        path: the file.
        width: the F that is needed; None takes what is there.

    Raises:
        MissingFileError, FormatError, TruncatedFileError, WidthError: the file cannot be used.
    """

    def __init__(self, path: str | Path, width: int | None = None):
        self.path = Path(path)
        self.shape, self._order, self.dtype, self._offset = _read_header(self.path)
        if width is not None:
            self._check_width(width)
        self._rows = None

    def __len__(self) -> int:
        """N, the number of rows."""
        return self.shape[0]

    @property
    def max_regions(self) -> int:
        """R, the regions that a row has room for."""
        return self.shape[1]

    @property
    def width(self) -> int:
        """F, the width of a region's features."""
        return self.shape[2]

    def require_width(self, width: int) -> None:
        """Check that F is what a trained model needs.

        Raises:
            WidthError: F is another.
        """
        self._check_width(width, ", the model's", "; give a --data with features of the backbone that it was trained with")

    def _check_width(self, width: int, whose: str = "", fits: str = "") -> None:
        if self.width != width:
            raise WidthError(
                f"{self.path}: expected region features of width {width}{whose}, found {self.width} (shape {self.shape}){fits}"
            )

    def read(self, row: int, count: int | None = None, name: str | None = None) -> np.ndarray:
        """The regions of one row.

        Args:
            row: from 0 to N - 1.
            count: how many of the R regions are real; None means all. What lies beyond is not looked at.
            name: what an error calls the image, beside its row.

        Returns:
            (count, F) features, a copy in the file's precision and the machine's byte order.

        Raises:
            NonFiniteError: a real region holds NaN or infinity.
        """
        features = np.array(self._mapped()[row, :count], dtype=self.dtype.newbyteorder("="), order="C")
        finite = np.isfinite(features)
        if not finite.all():
            region, column = np.argwhere(~finite)[0]
            image = f"row {row}" if name is None else f"row {row}, image {name}"
            value = features[region, column]
            raise NonFiniteError(
                f"{self.path}: expected finite features, found {value} in {image}, region {region}, column {column}"
            )
        return features

    def raw(self, row: int) -> bytes:
        """The bytes of a row, with all of its R regions; nothing is asked of their values."""
        return self._mapped()[row].tobytes()

    def _mapped(self) -> np.ndarray:
        if self._rows is None:
            self._rows = np.memmap(self.path, self.dtype, "r", self._offset, self.shape, self._order)
        return self._rows

    def __getstate__(self) -> dict:
        # A memory map pickles as its contents, which can be tens of gigabytes.
        return {**self.__dict__, "_rows": None}


def read_region_counts(path: str | Path, rows: int, max_regions: int) -> np.ndarray:
    """Read `{split}_num_boxes.npy`: how many regions of each row are real.

    Returns:
        (rows,) int64, each from 0 to max_regions.

    Raises:
        FormatError: the file is not such an array.
    """
    try:
        counts = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{path}: expected a .npy file of region counts: {error}") from None
    if not isinstance(counts, np.ndarray) or counts.shape != (rows,) or counts.dtype.kind not in "iu":
        found = f"shape {counts.shape}, {counts.dtype}" if isinstance(counts, np.ndarray) else type(counts).__name__
        raise FormatError(f"{path}: expected ({rows},) integers, one count a row of the features, found {found}")
    wrong = np.flatnonzero((counts < 0) | (counts > max_regions))
    if wrong.size:
        raise FormatError(f"{path}: expected counts from 0 to {max_regions}, found {counts[wrong[0]]} in row {wrong[0]}")
    return counts.astype(np.int64)


def _read_header(path: Path) -> tuple[tuple[int, int, int], str, np.dtype, int]:
    """Shape, memory order, dtype and where the values begin."""
    if not path.is_file():
        raise MissingFileError(f"{path}: expected a .npy file of region features (N, R, F), found no such file")
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"its version is {version}")
            shape, fortran_order, dtype = _HEADERS[version](file)
        except ValueError as error:
            raise FormatError(f"{path}: expected a .npy file of region features (N, R, F): {error}") from None
        offset = file.tell()
    if len(shape) != 3 or 0 in shape or dtype.newbyteorder("=") not in (np.float32, np.float16):
        raise FormatError(f"{path}: expected float32 or float16 of shape (N, R, F), none of them 0, found {dtype} of shape {shape}")
    expected, found = math.prod(shape) * dtype.itemsize, path.stat().st_size - offset
    if found < expected:
        missing = f"{found * 100 // expected}% of it is there; copy it again"
        raise TruncatedFileError(f"{path}: expected {expected} bytes for {shape} {dtype}, found {found}: {missing}")
    if found > expected:
        raise FormatError(f"{path}: expected {expected} bytes for {shape} {dtype}, found {found}: more lies in it than one array")
    return shape, "F" if fortran_order else "C", dtype, offset

"""What can be wrong with a file of a data set; and other libraries' errors in one line."""


class DataError(ValueError):
    """A file that cannot be used; the message names the file, what was expected and what was found."""

    def __init__(self, message: str):
        # A loader's worker sends its error as text, a traceback around the message.
        if message.startswith("Caught ") and "Original Traceback" in message:
            message = message.rstrip().rsplit(f"{type(self).__name__}: ", 1)[-1]
        super().__init__(message)


class MissingFileError(DataError, FileNotFoundError):
    """A file that is needed is not there."""


class FormatError(DataError):
    """A file does not have the format that its name promises: another file type, dtype, rank, encoding or key."""


class TruncatedFileError(DataError):
    """A file is shorter than its own header says."""


class WidthError(DataError):
    """Region features are of another width than the caller needs."""


class CaptionMismatchError(DataError):
    """The numbers of images, captions and ids do not fit together."""


class NonFiniteError(DataError):
    """Region features hold NaN or infinity."""


class StaleSplitError(DataError):
    """A split has changed since a gallery took it in, or is only partly in."""


class StaleIndexError(DataError):
    """A gallery was made by another model than the one that is to score."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]

"""Texts in the one form in which they are stored and compared."""

import re
import unicodedata

_SURROGATE = re.compile("[\ud800-\udfff]")


def normalised(text: str, name: str | None = None) -> str:
    """The text in Unicode's composed form, NFC: an accent is part of its letter, wherever the text was typed.

    Args:
        text: any.
        name: what an error calls it.

    Raises:
        ValueError: the text cannot be written as UTF-8: it has half of a surrogate pair, or a byte that is not UTF-8, as Python
            hands it on from command lines, names of files and terminals.
    """
    if text.isascii():
        return text
    of = f"{name}: " if name else ""
    try:
        # Where the locale has no UTF-8, Python hands on the bytes of text that is.
        text = text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(
            f"{of}expected text in UTF-8, found half of a character, U+{code:04X}, at position {error.start}"
        ) from None
    except UnicodeDecodeError as error:
        found = f"the byte 0x{error.object[error.start]:X}, at byte {error.start}"
        raise ValueError(f"{of}expected text in UTF-8, found {found}") from None
    return unicodedata.normalize("NFC", text)


def shown(name: str) -> str:
    """A file's name for the screen and for pages: bytes that are not text become replacement characters."""
    try:
        return normalised(name)
    except ValueError:
        return normalised(_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", name))

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
        ValueError: the text holds what is no character, and could not be written to a file: half of a surrogate pair, or a byte
            that is no UTF-8, as Python hands it on from command lines, names of files and terminals.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"the byte 0x{code - 0xDC00:X}" if 0xDC80 <= code <= 0xDCFF else f"half of a character, U+{code:04X}"
        of = f"{name}: " if name else ""
        raise ValueError(f"{of}expected text in UTF-8, found {found}, at position {error.start}") from None
    return unicodedata.normalize("NFC", text)


def shown(name: str) -> str:
    """A file's name for the screen and for pages: what is no text in it becomes a replacement character."""
    return normalised(_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", name))

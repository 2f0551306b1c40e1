"""Words and their ids, in SCAN's vocabulary files, and the tokens that the field counts as words."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from .errors import FormatError
from .files import parse_json, read_text, replacing
from .progress import watched
from .text import normalised

PAD, START, END, UNKNOWN = range(4)
MARKS = ("<pad>", "<start>", "<end>", "<unk>")

_LETTER = re.compile(r"\w")
# Of difflib's ratio: two letters of three may be swapped, as in "dgo".
_ALIKE = 0.66
_ABBREVIATIONS = frozenset(
    "adm bros capt co col corp dr ft gen gov inc jr lt ltd messrs mr mrs ms mt ph.d prof rep rev sen sgt sr st vs".split()
)
_ACRONYM = re.compile(r"[^\W\d](\.\w)*|\d+(\.\w)+")
# Marks that leave a full stop the caption's last when they stand alone after it; a straight double quote there opens.
_CLOSING = "])}>'»”’"
# A full stop at the end of a piece, and the closing marks that touch it.
_STOP = re.compile(r"([^.])\.([\])}>\"'»”’]*)$")
# The order matters: each step sees the spaces that those before it made.
_STEPS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("([«“‘„]|`+)", r" \1 "),
        # A straight double quote opens at the beginning or after a bracket, and closes elsewhere.
        (r"(^|[ (\[{<])(?:\"|'')", r"\1 `` "),
        # An apostrophe before a word is a quotation mark, unless it stands for letters left out.
        (r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
        # Commas and colons stay inside numbers and times.
        (r"([:,])(?!\d)", r" \1 "),
        (r"(\.{2,}|--|[;@#$%&?!*‒-―\[\](){}<>»”’])", r" \1 "),
        (r"([^'])'( |$)", r"\1 ' "),
        (r"''|\"", " '' "),
        (r" +|$", " "),
        (r"([^' ])('[smd]?|'ll|'re|'ve|n't) ", r"\1 \2 "),
        (r"\b(can(?=not\b)|(?:gim|lem)(?=me\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|d(?='ye\b)|more(?='n\b))", r"\1 "),
    )
)


def tokenize(text: str) -> list[str]:
    """Split a caption into the words that the field's vocabularies are made of.

    These are the tokens of NLTK's `word_tokenize` on the lower-cased text, which the SCAN code and its heirs use:
    punctuation marks are words, `n't`, `'s` and the like are split off, hyphens stay inside words, straight double
    quotes become `` and ''. In NLTK a trained model decides whether a full stop inside the text ends a sentence; here
    it does unless it stands after an initial, an acronym or one of a few abbreviations.

    Args:
        text: one caption.

    Returns:
        Its words, lower-case and composed (NFC), without marks for start and end.

    Raises:
        ValueError: the text cannot be written as UTF-8: it has half of a surrogate pair, or a byte that is not UTF-8.
    """
    pieces = normalised(text).lower().split()
    last = len(pieces) - 1
    while last > 0 and not pieces[last].strip(_CLOSING):
        last -= 1
    return [word for position, piece in enumerate(pieces) for word in _words(piece, position == last)]


class Vocabulary:
    """Ids for words. Ids 0 to 3 are <pad>, <start>, <end> and <unk>.

    Args:
        words: the words that follow the four marks, each once.

    Raises:
        ValueError: a word comes twice.
    """

    def __init__(self, words: Iterable[str]):
        self.words = [*MARKS, *words]
        if len(set(self.words)) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ValueError(f"words: expected each word once, got {twice!r} more than once")
        self._ids: dict[str, int] = {}
        for index, word in enumerate(self.words):
            # Another program may have made two words of one that was typed in two ways.
            self._ids.setdefault(normalised(word), index)

    @classmethod
    def from_captions(cls, captions: Iterable[str], threshold: int = 4) -> "Vocabulary":
        """Take every word that occurs at least `threshold` times, in the order in which words first occur.

        The field builds its vocabularies from the captions of train and dev together.
        """
        counts = Counter(word for caption in watched(captions, "vocabulary", "captions") for word in tokenize(caption))
        return cls(word for word, count in counts.items() if count >= threshold)

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read SCAN's `*_vocab.json`: {"word2idx": {word: id}, "idx2word": {"id": word}, "idx": number of words}.

        Raises:
            MissingFileError, FormatError: the file cannot be used, or its parts contradict each other.
        """
        path = Path(path)
        expected = 'JSON with "word2idx", "idx2word" and "idx"'
        content = parse_json(path, read_text(path, "a vocabulary in JSON"), expected)
        try:
            ids = {str(word): int(index) for word, index in content["word2idx"].items()}
            words = {int(index): word for index, word in content["idx2word"].items()}
            count = int(content["idx"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}: expected {expected}: {type(error).__name__}: {error}") from None
        if sorted(words) != list(range(count)):
            raise FormatError(
                f'{path}: expected "idx2word" to have the ids 0 to {count - 1}, one less than "idx", found {len(words)} ids'
            )
        if ids != {word: index for index, word in words.items()}:
            raise FormatError(f'{path}: expected "word2idx" and "idx2word" to be each other\'s inverse, found that they are not')
        ordered = [words[index] for index in range(count)]
        if tuple(ordered[: len(MARKS)]) != MARKS:
            raise FormatError(f"{path}: expected the ids 0 to 3 to be {', '.join(MARKS)}, found {ordered[: len(MARKS)]}")
        try:
            return cls(ordered[len(MARKS) :])
        except (ValueError, AttributeError) as error:
            raise FormatError(f"{path}: expected words: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write SCAN's format, atomically: a reader sees the old file or the new one."""
        ids = {word: index for index, word in enumerate(self.words)}
        content = {"word2idx": ids, "idx2word": dict(enumerate(self.words)), "idx": len(self.words)}
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(content), encoding="utf-8")

    @property
    def num_words(self) -> int:
        """The number of words, the four marks not counted."""
        return len(self.words) - len(MARKS)

    def near(self, word: str) -> list[str]:
        """Up to three words of the vocabulary with a similar spelling, the nearest first."""
        known = [own for own in self.words[len(MARKS) :] if _LETTER.search(own)]
        return difflib.get_close_matches(word, known, n=3, cutoff=_ALIKE)

    @property
    def marks(self) -> list[int]:
        """The ids of words without meaning: the four marks, and words that have neither a letter nor a number."""
        return [index for index in range(len(self.words)) if not self._has_meaning(index)]

    def _has_meaning(self, index: int) -> bool:
        return index >= len(MARKS) and _LETTER.search(self.words[index]) is not None

    def unknown(self, text: str) -> list[str]:
        """The words of a text that are not in the vocabulary, in their order."""
        return [word for word in tokenize(text) if self[word] == UNKNOWN]

    def knows(self, text: str) -> bool:
        """Whether the vocabulary has a word of the text that has a letter or a number."""
        return any(self._has_meaning(self[word]) for word in tokenize(text))

    def __len__(self) -> int:
        """The number of ids, those of the marks included."""
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def __getitem__(self, word: str) -> int:
        """The id of a word; for a word that is not in the vocabulary, the id of <unk>."""
        return self._ids.get(word, UNKNOWN)

    def encode(self, caption: str) -> list[int]:
        """The ids of a caption's words, between those of <start> and <end>."""
        return [START, *(self[word] for word in tokenize(caption)), END]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The words of ids; <pad>, <start> and <end> are left out."""
        return [self.words[index] for index in map(int, ids) if index not in (PAD, START, END)]


# What stands between white space recurs: a piece is looked at once, not once a caption.
@lru_cache(maxsize=1 << 16)
def _words(piece: str, is_last: bool) -> tuple[str, ...]:
    """The words of a piece of lower-case text without white space."""
    stop = _STOP.search(piece)
    if stop and (is_last or _ends_sentence(piece[: stop.end(1)])):
        piece = f"{piece[: stop.end(1)]} .{stop[2]}"
    for pattern, replacement in _STEPS:
        piece = pattern.sub(replacement, piece)
    return tuple(piece.split())


def _ends_sentence(word: str) -> bool:
    """Whether the full stop after a word inside the text is one."""
    bare = word.lstrip("\"'`([{<“‘")
    return bare not in _ABBREVIATIONS and not _ACRONYM.fullmatch(bare)

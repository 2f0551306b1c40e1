"""What is said of words that a model does not know, by the commands and from Python alike."""

from collections.abc import Iterable

from .vocabulary import Vocabulary


def near_spellings(vocabulary: Vocabulary, words: Iterable[str]) -> dict[str, list[str]]:
    """For each unknown word, known ones that are spelt much like it; marks such as a comma are left out."""
    return {word: vocabulary.near(word) for word in dict.fromkeys(words) if any(map(str.isalnum, word))}


def listed(near: dict[str, list[str]]) -> str:
    """Unknown words with their near spellings, in one line."""
    return ", ".join(
        f"{word} (near it: {', '.join(others)})" if others else f"{word} (nothing near it)" for word, others in near.items()
    )


def nothing_known(vocabulary: Vocabulary, text: str) -> str:
    """What to say of a text of which the vocabulary knows no word."""
    expected = "expected a word that the model knows"
    near = near_spellings(vocabulary, vocabulary.unknown(text))
    if not near:
        return f"{expected}, got only marks: {text}"
    return (
        f"{expected}, got {listed(near)}; it knows {vocabulary.num_words:,} words, by default those that occur four times or more "
        "in the captions of train and dev. In a language without spaces, put spaces between words"
    )

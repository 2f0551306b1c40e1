"""Tokens and ids."""

import json

import pytest

from caan import Vocabulary, errors, tokenize
from caan.vocabulary import END, START, UNKNOWN


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man with a red helmet .", "a man with a red helmet ."),
        ("Two dogs, running.", "two dogs , running ."),
        ("a red-haired, half\u2014eaten x--y", "a red-haired , half \u2014 eaten x -- y"),
        (
            "it 's the dog 's man's isn't don't can't they'll you've i'm",
            "it 's the dog 's man 's is n't do n't ca n't they 'll you 've i 'm",
        ),
        ("the boys' toys at 5 o'clock", "the boys ' toys at 5 o'clock"),
        ("he can't; he cannot, gonna", "he ca n't ; he can not , gon na"),
        ("'hello' 'em rock 'n' roll", "' hello ' ' em rock 'n ' roll"),
        ('a sign that says "no parking".', "a sign that says `` no parking '' ."),
        ('he said "hi."', "he said `` hi . ''"),
        ('the letter " P. "', "the letter `` p. ``"),
        ("(left) [right]!?", "( left ) [ right ] ! ?"),
        ("1,000 people at 10:30, and $3.50: 5%", "1,000 people at 10:30 , and $ 3.50 : 5 %"),
        ("wait... what", "wait ... what"),
        ("Mr. Potato in the U.S. near Howe St. by J.R. Tolkien", "mr. potato in the u.s. near howe st. by j.r. tolkien"),
        ("a man. A dog.) A cat.", "a man . a dog . ) a cat ."),
        ("at No. 5 St.", "at no . 5 st ."),
        ("tall & wide #1 a/b", "tall & wide # 1 a/b"),
        ("\u201cquoted\u201d \u2018single\u2019 \u00abx\u00bb", "\u201c quoted \u201d \u2018 single \u2019 \u00ab x \u00bb"),
        ("  spaces\tand\xa0more  ", "spaces and more"),
        ("", ""),
    ],
)
def test_tokens(text, words):
    assert tokenize(text) == words.split()


def test_ids_and_back(tmp_path):
    vocabulary = Vocabulary.from_captions(["A dog , a cat .", "a dog runs", "a dog sits"], threshold=2)
    assert vocabulary.words == ["<pad>", "<start>", "<end>", "<unk>", "a", "dog"]
    assert len(vocabulary) == 6 and "dog" in vocabulary and "cat" not in vocabulary
    assert vocabulary.encode("A cat") == [START, 4, UNKNOWN, END]
    assert vocabulary.encode("") == [START, END]
    assert vocabulary.decode([START, 4, 5, UNKNOWN, END, 0, 0]) == ["a", "dog", "<unk>"]

    path = tmp_path / "small_vocab.json"
    vocabulary.save(path)
    assert json.loads(path.read_text()).keys() == {"word2idx", "idx2word", "idx"}
    assert Vocabulary.load(path).words == vocabulary.words
    assert [file.name for file in tmp_path.iterdir()] == ["small_vocab.json"]


def test_threshold_is_four():
    captions = ["rare common"] * 3 + ["common"]
    assert Vocabulary.from_captions(captions).words[4:] == ["common"]


def test_scan_file(tmp_path):
    """Laid out as SCAN writes it, whose ids need not be in the file's order."""
    words = ["<pad>", "<start>", "<end>", "<unk>", "zebra", "caf\u00e9", "``"]
    ids = {word: index for index, word in reversed(list(enumerate(words)))}
    path = tmp_path / "f30k_precomp_vocab.json"
    path.write_text(json.dumps({"idx2word": {str(index): word for word, index in ids.items()}, "idx": 7, "word2idx": ids}))
    vocabulary = Vocabulary.load(path)
    assert vocabulary.words == words and vocabulary["caf\u00e9"] == 5 and vocabulary['"'] == UNKNOWN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("idx"), "KeyError: 'idx'"),
        (lambda x: x.update(idx=9), 'expected "idx2word" to have the ids 0 to 8.*found 5'),
        (lambda x: x["word2idx"].update(dog=3), "inverse"),
        (lambda x: x["word2idx"].update(cat=5), "inverse"),
        (
            lambda x: (x["word2idx"].update({"<pad>": 1, "<start>": 0}), x["idx2word"].update({"0": "<start>", "1": "<pad>"})),
            "ids 0 to 3",
        ),
        (lambda x: x.update(word2idx=[1]), "AttributeError"),
        (lambda x: x["word2idx"].update(dog="x"), "ValueError"),
        (
            lambda x: (x["word2idx"].update({"\ud83d": 5}), x["idx2word"].update({"5": "\ud83d"}), x.update(idx=6)),
            "half of a character",
        ),
    ],
)
def test_broken_files(tmp_path, change, message):
    path = tmp_path / "broken_vocab.json"
    Vocabulary(["dog"]).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(errors.FormatError, match=f"broken_vocab.json: .*{message}"):
        Vocabulary.load(path)


def test_unusable_files(tmp_path):
    with pytest.raises(errors.MissingFileError, match=r"none_vocab.json"):
        Vocabulary.load(tmp_path / "none_vocab.json")
    (tmp_path / "text_vocab.json").write_text("dog cat")
    with pytest.raises(errors.FormatError, match=r"text_vocab.json: expected JSON"):
        Vocabulary.load(tmp_path / "text_vocab.json")


def test_words_are_composed(tmp_path):
    vocabulary = Vocabulary(["cafe\u0301", "caf\u00e9", "dog"])
    assert vocabulary.encode("Caf\u00e9 dog")[1:-1] == vocabulary.encode("Cafe\u0301 dog")[1:-1] == [4, 6]
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json").words == vocabulary.words
    with pytest.raises(ValueError, match="expected text in UTF-8, found half of a character, U\\+D83D"):
        vocabulary.encode("a \ud83d")


def test_a_word_twice():
    with pytest.raises(ValueError, match=r"'dog' more than once"):
        Vocabulary(["dog", "cat", "dog"])
    with pytest.raises(ValueError, match=r"'<pad>' more than once"):
        Vocabulary(["<pad>"])


def test_near_spellings():
    vocabulary = Vocabulary(["dog", "running", "run", "snow", "."])
    assert [vocabulary.near(word) for word in ("dgo", "runing", "snwo", "zebra")] == [["dog"], ["running", "run"], ["snow"], []]

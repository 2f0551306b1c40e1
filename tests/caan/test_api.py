"""What Python programs use: the promises of its docstrings, by their own examples too, and errors that say what was wrong."""

import builtins
import doctest
import inspect
import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from models import attentive
from PIL import Image
from safetensors.torch import load_file

import caan
from caan import CAAN, ModelConfig, Vocabulary, checkpoint, errors, scorer
from caan.data import load_scan_split
from caan.gallery import build_index

ANIMALS = ["dog", "cat", "bird"]
BACKBONE = {"backbone": "efficientnet-lite0", "size": None}


def network(vocabulary, **options):
    """Of the default backbone's features; drawn, not trained."""
    torch.manual_seed(0)
    return attentive(CAAN(ModelConfig(320, len(vocabulary), width=12, hidden_width=6, word_width=5, dropout=0.5, **options)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photographs, captions, their features, a run and a gallery."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for name in ANIMALS:
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / "photos" / f"{name}.png")
    lines = [f"{name}.png,two {name}s and a {name} runs" for name in ANIMALS]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *lines, ""]))
    caan.extract(folder / "photos", folder / "features", folder / "captions.csv", captions_per_image=1, workers=1)
    split = load_scan_split(folder / "features", "test", captions_per_image=1)
    vocabulary = Vocabulary.from_captions(split.captions, 1)
    (folder / "runs" / "pets").mkdir(parents=True)
    checkpoint.save_model(folder / "runs" / "pets" / "best.safetensors", network(vocabulary), vocabulary)
    model, *_ = checkpoint.load_model(folder / "runs" / "pets")
    build_index(folder / "gallery", model, vocabulary, folder / "runs" / "pets", split, backbone=BACKBONE, say=lambda line: None)
    return folder


@pytest.fixture
def model(made):
    return caan.load(made / "runs" / "pets", backbone=made / "features")


@pytest.fixture
def features(made):
    return np.load(made / "features" / "test_ims.npy")


@pytest.mark.parametrize("name", ["model", "gallery", "extracting"])
def test_the_examples(made, monkeypatch, name):
    monkeypatch.chdir(made)
    result = doctest.testmod(import_module(f"caan.api.{name}"), optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed


def test_the_page(made, monkeypatch):
    """The code of docs/python.md, one block after the other."""
    monkeypatch.chdir(made)
    # As README calls it.
    shutil.copytree(Path("runs", "pets"), "run")
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        # There are three photographs.
        exec(code.replace("hold_out=50", "hold_out=1"), names)
    assert names["scores"].shape == (8, 8) and len(names["hits"]) == len(names["captions"]) == 2
    assert checkpoint.digest(names["same"].network, names["same"].vocabulary) == names["gallery"]._gallery.contents.model


def test_scores_are_the_operators(model, features, made):
    texts = ["two cats", "a dog runs", "a bird and a dog"]
    images = model.encode_images(features)
    scores = model.score(images, model.encode_texts(texts))
    assert scores.shape == (3, 3) and not scores.requires_grad and len(images) == 3
    one_by_one = torch.cat([model.score(features[i], texts) for i in range(3)])
    torch.testing.assert_close(scores, one_by_one, rtol=0, atol=1e-6)
    # Photographs are features of the backbone that the data folder has noted.
    photographs = [made / "photos" / f"{split_id}" for split_id in (made / "features" / "test_ids.txt").read_text().split()]
    assert torch.equal(model.score(photographs, texts), scores)
    assert torch.equal(model.score([str(photographs[0]), Image.open(photographs[1]), features[2]], texts), scores)
    ragged = [features[0][:5], torch.from_numpy(features[1])]
    alone = [model.score(one, texts) for one in ragged]
    torch.testing.assert_close(model.score(ragged, texts), torch.cat(alone), rtol=0, atol=1e-6)


def test_texts_in_batches_keep_their_order(model, features, monkeypatch):
    texts = ["dog " * (1 + number * 5 % 7) + "runs" for number in range(9)]
    expected = model.score(features, texts)
    monkeypatch.setattr(import_module("caan.api.model"), "_BATCH", 2)
    torch.testing.assert_close(model.score(features, texts), expected, rtol=0, atol=1e-6)


def test_a_dense_model_is_scored_in_tiles(model, features, monkeypatch):
    dense = caan.Model(network(model.vocabulary, intra="features"), model.vocabulary)
    texts = ["two cats", "a dog runs", "birds", "a bird runs"]
    expected = dense.score(features, texts)
    monkeypatch.setattr(scorer, "_SMALL_TILE", (2, 3))
    torch.testing.assert_close(dense.score(features, texts), expected, rtol=0, atol=1e-6)
    assert dense.rank("two cats", features)[0].score == pytest.approx(expected[:, 0].max().item(), abs=1e-6)


def test_rank(model, features, made):
    texts = ["two cats", "a dog runs", "a bird and a dog"]
    scores = model.score(features, texts)
    found = model.rank("a dog runs", features)
    assert [hit.item for hit in found] == scores[:, 1].argsort(descending=True).tolist()
    assert [hit.score for hit in found] == pytest.approx(scores[:, 1].sort(descending=True).values.tolist(), abs=1e-6)
    for image in (features[2], model.encode_images(features[2])):
        assert [hit.item for hit in model.rank(image, texts, top=2)] == scores[2].argsort(descending=True).tolist()[:2]
    same = model.rank("a dog runs", np.stack([features[0]] * 3))
    assert [hit.item for hit in same] == [0, 1, 2]
    assert model.rank(made / "photos" / "dog.png", texts, top=1)[0].item in range(3)


def test_a_gallery_is_searched(made, model, features):
    gallery = caan.Gallery(made / "gallery")
    ids = (made / "features" / "test_ids.txt").read_text().split()
    assert len(gallery) == 3 and gallery.model.backbone == BACKBONE
    hits = gallery.search("a dog runs")
    expected = model.rank("a dog runs", features)
    assert [hit.number for hit in hits] == [hit.item for hit in expected]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert [(hit.image, hit.split, hit.caption) for hit in hits] == [(ids[hit.number], "test", None) for hit in hits]
    by_photograph = gallery.search(made / "photos" / ids[1], top=2)
    assert by_photograph == gallery.search(features[1], top=2) and by_photograph[0].caption.startswith("two ")
    assert [hit.image for hit in gallery.search(1)] == [hit.image for hit in gallery.search(features[1], shortlist=None)]
    assert gallery.search(np.int64(1)) == gallery.search(1)
    assert gallery.search(np.int64(1), find="images") == gallery.search(1, find="images")
    similar = gallery.search(1, find="images")
    assert {hit.number for hit in similar} == {0, 2} and similar[0].caption is None
    assert gallery.search(features[1], find="images")[0].score == pytest.approx(1)


def test_save_and_read_again(made, model, features, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model"]["width"] == 12 and config["words"] == model.vocabulary.words[4:]
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == set(model.network.state_dict())
    for again in (caan.Model.from_pretrained(tmp_path / "saved"), caan.load(tmp_path / "saved")):
        assert again.backbone == model.backbone == {**BACKBONE, "size": 192} and again.network.config == model.network.config
        assert checkpoint.digest(again.network, again.vocabulary) == checkpoint.digest(model.network, model.vocabulary)
        assert torch.equal(again.score(features, ["a dog"]), model.score(features, ["a dog"]))
    # What is of one model, wherever it lies.
    assert caan.Gallery(made / "gallery", run=tmp_path / "saved").search("a dog") == caan.Gallery(made / "gallery").search("a dog")


def test_a_saved_model_that_is_damaged(model, tmp_path):
    model.save_pretrained(tmp_path)
    config, tensors = tmp_path / "config.json", tmp_path / "model.safetensors"
    good = config.read_text()
    for wrong, message in (
        (good.replace("caan-2", "caan-9"), "config.json: expected a model of format caan-2, found caan-9"),
        ("[]", "config.json: expected a model of format caan-2, found list"),
        (good.replace('"width": 12', '"width": 13'), "expected a model of caan: RuntimeError"),
        ("{", "config.json: expected the settings of a model of caan"),
    ):
        config.write_text(wrong)
        with pytest.raises(errors.FormatError, match=message):
            caan.load(tmp_path)
    config.write_text(good)
    tensors.write_bytes(b"something else")
    with pytest.raises(errors.FormatError, match=r"model.safetensors: expected the tensors of a model in safetensors"):
        caan.load(tmp_path)
    tensors.unlink()
    with pytest.raises(errors.MissingFileError, match=r"model.safetensors: expected the tensors of a model, found no such file"):
        caan.load(tmp_path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m, g, x: m.encode_images(x[..., :5]),
            ValueError,
            r"images\[0\]: expected features of width 320, .*\(36, 5\)",
        ),
        (
            lambda m, g, x: m.encode_images([x[0], 7]),
            TypeError,
            r"images\[1\]: expected a photograph or features .*, got int",
        ),
        (lambda m, g, x: m.encode_images(x[:, 0].astype(int)), ValueError, r"images\[0\]: expected floating-point features"),
        (lambda m, g, x: m.encode_images(x * np.nan), ValueError, r"images\[0\]: expected finite features, got NaN or infinity"),
        (lambda m, g, x: m.encode_images([]), ValueError, "images: expected at least one, got none"),
        (lambda m, g, x: m.encode_images("nowhere.png"), errors.DataError, "nowhere.png: expected a photograph"),
        (lambda m, g, x: m.encode_texts([]), ValueError, "texts: expected at least one, got none"),
        (lambda m, g, x: m.encode_texts(["a dog", " "]), ValueError, "texts: expected texts with words, got ' '"),
        (lambda m, g, x: m.rank("a dog", x, top=0), ValueError, "top: expected at least 1, got 0"),
        (
            lambda m, g, x: m.rank("a dog", m.encode_texts("a")),
            TypeError,
            "candidates: expected images for a text, got texts; a string is a text",
        ),
        (lambda m, g, x: m.rank(x[0], m.encode_images(x)), TypeError, "candidates: expected texts for an image, got images"),
        (
            lambda m, g, x: m.rank("Hund !", x),
            ValueError,
            r"query: expected a word that the model knows, got hund \(nothing near it\); it knows \d+ words",
        ),
        (lambda m, g, x: m.rank(m.encode_images(x), ["a dog"]), ValueError, "query: expected one, got 3"),
        (lambda m, g, x: g.search("Hund"), ValueError, "query: expected a word that the model knows, got hund"),
        (lambda m, g, x: g.search("dgo"), ValueError, r"query: expected a word that .*, got dgo \(near it: dog"),
        (
            lambda m, g, x: g.search(__file__),
            ValueError,
            "query: expected a text, got the file '.*': name a photograph by a pathlib",
        ),
        (lambda m, g, x: m.rank(__file__, x), ValueError, "query: expected a text, got the file"),
        (
            lambda m, g, x: g.search("dog", find="captions"),
            ValueError,
            "find: expected 'images' or None for a text, got 'captions'",
        ),
        (lambda m, g, x: g.search(3), ValueError, "query: expected the number of an image, from 0 to 2, got 3"),
        (lambda m, g, x: g.search(np.int64(3)), ValueError, "query: expected the number of an image, from 0 to 2, got 3"),
        (lambda m, g, x: g.search(None), TypeError, "query: expected a photograph .*, got NoneType"),
        (lambda m, g, x: m.rank(None, ["a dog"]), TypeError, "query: expected a photograph .*, got NoneType"),
        (lambda m, g, x: m.rank(x[0, :, :5], ["a dog"]), ValueError, r"query: expected features of width 320, .*\(36, 5\)"),
        (lambda m, g, x: m.rank(x, ["a dog"]), ValueError, "query: expected one, got 3"),
    ],
)
def test_what_does_not_fit(made, model, features, call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call(model, caan.Gallery(made / "gallery"), features)


def test_backbones(made, tmp_path):
    bare = caan.load(made / "runs" / "pets")
    assert bare.backbone is None and bare.unknown_words("a Hund and a dog") == ["hund"]
    with pytest.raises(ValueError, match=r"^images: .* it is not known which backbone .* caan.load\(..., backbone=NAME"):
        bare.encode_images(made / "photos" / "dog.png")
    with pytest.raises(ValueError, match=r"^query: expected features"):
        bare.rank(made / "photos" / "dog.png", ["a dog"])
    with pytest.raises(errors.MissingFileError, match="expected the record of a backbone"):
        caan.load(made / "runs" / "pets", backbone=tmp_path)
    (tmp_path / "test_extract.json").write_text("[]")
    with pytest.raises(errors.FormatError, match="test_extract.json: expected what caan extract writes"):
        caan.load(made / "runs" / "pets", backbone=tmp_path)
    narrow = caan.Model(CAAN(ModelConfig(6, len(bare.vocabulary), width=4)), bare.vocabulary, backbone=BACKBONE)
    with pytest.raises(ValueError, match="^backbone: expected features of width 6, the model's, got 320 from efficientnet-lite0$"):
        narrow.encode_images(made / "photos" / "dog.png")


def test_extract_names_what_is_wrong(made, tmp_path):
    with pytest.raises(errors.DataError, match="^photos: expected a folder of photographs"):
        caan.extract(tmp_path / "none", tmp_path / "data", made / "captions.csv")
    with pytest.raises(ValueError, match="argument captions_per_image: invalid int value: 'many'"):
        caan.extract(made / "photos", tmp_path / "data", made / "captions.csv", captions_per_image="many")


def public_functions():
    for name in caan._MODULES:
        value = getattr(caan, name)
        yield name, value
        if isinstance(value, type) and value.__module__.startswith("caan.api."):
            yield from ((f"{name}.{x}", y) for x, y in vars(value).items() if inspect.isfunction(y) and not x.startswith("_"))


def public_docstrings():
    for name in caan.__all__:
        value = getattr(caan, name)
        members = {x: y for x, y in vars(value).items() if not x.startswith("_")} if isinstance(value, type) else {}
        for place, thing in ((name, value), *((f"{name}.{x}", y) for x, y in members.items())):
            yield place, inspect.getdoc(getattr(thing, "__func__", thing)) or ""


def test_docstrings_name_only_what_a_program_can_import():
    for place, text in public_docstrings():
        named = {*re.findall(r"\bcaan\.(\w+)", text), *re.findall(r"\b[A-Z]\w*Error\b", text)}
        assert named <= {*caan.__all__, *dir(builtins)}, place


def test_everything_is_documented():
    """Every public function says what it gives or raises, and what its arguments are where there are several: a docs page is made
    of it."""
    for name, value in public_functions():
        text = inspect.getdoc(value) or ""
        assert text, name
        if inspect.isfunction(value):
            arguments = [x for x in inspect.signature(value).parameters if x != "self"]
            assert len(arguments) < 2 or all(f"{x}:" in text for x in arguments), name
            assert "return" in inspect.get_annotations(value), name

"""Pictures and pages: what they show is what the operator says, and a page needs nothing but itself."""

import base64
import io
import re
import shutil
import subprocess
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from ablation import TABLE_4
from models import make_model, whole_matrix
from PIL import Image
from runs import trainer

import caan_kernels as ck
from caan import checkpoint, errors, ranking
from caan.attention import RegionBoxes, explain, heat
from caan.attention import figures as pictures
from caan.attention.retrieval_page import Answer, Hit, write_retrieval_page
from caan.commands import main
from caan.data import Captions, Images, load_scan_split
from caan.model import Encoded

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def boxes(split, tmp_path):
    corner = np.random.default_rng(1).uniform(0, 0.5, (24, 5, 2))
    found = np.concatenate([corner, corner + 0.4], axis=2).astype(np.float32)
    np.save(tmp_path / "test_boxes.npy", found)
    return found


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        Image.new("RGB", (60, 40), (10 * number, 100, 50)).save(folder / f"{number}.png")
    return folder


class Page(HTMLParser):
    """The text, the images, those of a dark page and the marks of a page; anything from elsewhere is a failure."""

    def __init__(self, path):
        super().__init__()
        self.text, self.images, self.dark, self.right = [], [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "iframe", "object")
        assert "href" not in attributes and not any(name.startswith("on") for name in attributes)
        if tag in ("img", "source"):
            url = attributes["src" if tag == "img" else "srcset"]
            kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", url).groups()
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            assert image.format.lower() == kind and image.mode == "RGB"
            (self.images if tag == "img" else self.dark).append(image)
        self.right += "right" in attributes.get("class", "").split()

    def handle_data(self, data):
        self.text += [data.strip()] if data.strip() else []


@pytest.mark.parametrize("options", TABLE_4.values(), ids=TABLE_4)
def test_an_explained_pair_is_what_the_operator_says(split, boxes, options):
    model, vocabulary = make_model(split, 0, **options)
    pairs = [(3, 15), (3, 99), (7, "word1 nothing word2")]
    found = list(explain(model, vocabulary, split, pairs))
    images, captions = Images(split), Captions(split, vocabulary)
    for pair, (image, caption) in zip(found[:2], pairs, strict=False):
        regions = model.encode_images(images.collate([images[image]]))
        words = model.encode_captions(captions.collate([captions[caption]]))
        expected = ck.attention_maps(
            regions.features, words.features, model.attention.weights, torch.tensor([[0, 0]]), regions.lengths, words.lengths,
            **model.attention.options, backend="reference",
        )  # fmt: skip
        for name in expected._fields:
            ours = pair.score if name == "scores" else getattr(pair, name)
            np.testing.assert_allclose(ours, getattr(expected, name)[0].detach().numpy(), atol=2e-6)
        assert len(pair.words) == captions.lengths[caption] and (pair.boxes == boxes[image, : split.region_counts[image]]).all()
    assert [pair.right for pair in found] == [True, False, None]
    assert found[2].words == ["<start>", "word1", "<unk:nothing>", "word2", "<end>"]
    with pytest.raises(ValueError, match="pairs: expected images from 0 to 23, got 24"):
        explain(model, vocabulary, split, [(24, 0)])


def test_a_pair_made_by_hand(split, boxes, model_file, tmp_path, monkeypatch):
    """Two regions; a word that looks at the first, one that looks at both, one at neither, and one at the second alone."""
    model, vocabulary = make_model(split, 0, width=3)
    regions = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    words = torch.tensor([[[0.9, 0, 0], [0.4, 0.3, 0], [-0.5, -0.5, 0.5], [-0.1, 0.2, 0]]])
    monkeypatch.setattr(type(model), "encode_images", lambda *_: Encoded(regions, torch.tensor([2])))
    monkeypatch.setattr(type(model), "encode_captions", lambda *_: Encoded(words, torch.tensor([4])))
    split.region_counts[3] = 2
    [pair] = explain(model, vocabulary, split, [(3, "word1 word2")])

    # K is the identity: the alignment of a region and a word is the tanh of one of the word's numbers.
    A = np.tanh(words[0, :, :2].numpy()).T
    np.testing.assert_allclose(pair.alignment, A, atol=1e-6)
    both = A[:, 1] / np.linalg.norm(A[:, 1])
    looks = np.array([[1, both[0], 0, 0], [0, both[1], 0, 1]])
    np.testing.assert_allclose(pair.word_to_region, looks, atol=1e-6)
    seen = np.maximum(A, 0)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    np.testing.assert_allclose(pair.region_to_word, seen.T, atol=1e-6)
    # Of the second word more is seen by the second region, though it looks at the first one most.
    assert seen[1, 1] > seen[0, 1] and looks[1, 1] < looks[0, 1]
    responses = seen.T / np.maximum(np.linalg.norm(seen.T, axis=1, keepdims=True), 1e-8)
    np.testing.assert_allclose(pair.word_affinity, responses @ responses.T, atol=1e-6)
    assert pair.word_affinity[0, 3] == 0 < pair.word_affinity[0, 1]

    figure = pictures.pair_figure(pair)
    titles = {axis.get_title(): axis for axis in figure.axes}
    # An even part of two is 1/√2.
    for word, weights in zip(pair.words, looks.T, strict=True):
        most = f"up to {weights.max() * 2**0.5:.1f}×" if weights.any() else "nowhere"
        expected = heat.painted(Image.new("RGB", (320, 240), heat.GREY), pair.boxes, weights * 2**0.5)
        shown = np.asarray(titles[f"{word}  {most}"].images[0].get_array(), dtype=int)
        # Both are rounded to whole colours.
        assert np.abs(shown - np.asarray(expected)).max() <= 1
    figure.clear()

    command = ["pair", model_file, "--data", tmp_path, "--image", 3, "--text", "word1 word2", "--out", tmp_path / "pair.html"]
    np.save(tmp_path / "test_num_boxes.npy", split.region_counts)
    checkpoint.save_model(model_file, model, vocabulary)
    assert show(*command) == 0
    texts = Page(tmp_path / "pair.html").text
    first = texts.index("Words: g, and the region each looks at most")
    cells = texts[first + 4 : first + 16]
    assert cells[::3] == ["<start>", "word1", "word2", "<end>"] and cells[2::3] == ["0", "0", "none", "1"]
    second = texts.index("Regions: f, and the word each looks at most")
    assert texts[second + 4 : second + 10][2::3] == [pair.words[row.argmax()] for row in seen] == ["<start>", "word1"]


def test_boxes(split, boxes, tmp_path):
    assert RegionBoxes(split).assumed is None
    np.save(tmp_path / "test_boxes.npy", boxes * 640)
    with pytest.raises(errors.FormatError, match="expected boxes x1 y1 x2 y2 as fractions of the photograph"):
        RegionBoxes(split)[0]
    np.save(tmp_path / "test_boxes.npy", boxes[:, :3])
    with pytest.raises(errors.FormatError, match=r"expected \(24, 5, 4\) floating point"):
        RegionBoxes(split)
    (tmp_path / "test_boxes.npy").unlink()
    with pytest.raises(errors.MissingFileError, match="only images whose regions are a square grid can be shown without"):
        RegionBoxes(split)
    np.save(tmp_path / "square_ims.npy", np.ones((2, 9, 6), np.float32))
    (tmp_path / "square_caps.txt").write_text("one\n" * 10)
    assumed = RegionBoxes(load_scan_split(tmp_path, "square"))
    assert assumed.assumed == 3 and assumed[1][4].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_heat():
    found = heat.heat_image(np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 0.75]]), np.array([2.0, 1.0]))
    size = len(found)
    assert found[0, 0] == 2 and found[size // 3, size // 3] == 2 and found[size // 2 + 5, size // 2 + 5] == 1
    assert np.isnan(found[-1, 0])


def test_a_photograph_keeps_its_colours_under_attention():
    """Five regions side by side, at a ninth, a half, once, twice and nine times an even share, and no region at the right."""
    boxes = np.array([[left / 6, 0, (left + 1) / 6, 1] for left in range(5)])
    photograph = Image.new("RGB", (60, 10), (200, 100, 40))
    pixels = np.asarray(heat.painted(photograph, boxes, np.array([1 / 9, 0.5, 1, 2, 9]))).astype(float)
    least, less, even, more, most, none = pixels[5, 5::10]
    assert even.tolist() == [200, 100, 40]
    for dark, brightness in ((least, 0.35), (less, 1 - 0.65 * np.log(2) / np.log(3)), (none, 0.35)):
        np.testing.assert_allclose(dark, brightness * even, atol=0.6)
    for orange, opaque in ((more, 0.55 * np.log(2) / np.log(3)), (most, 0.55)):
        np.testing.assert_allclose(orange, (1 - opaque) * even + opaque * np.array([255, 122, 0]), atol=0.6)
    scale = heat.scale(np.array([1 / 3, 1, 3]))
    assert scale.shape == (1, 3, 3) and scale[0, 1].tolist() == list(heat.GREY)


def test_a_figure_shows_the_numbers(split, boxes):
    model, vocabulary = make_model(split, 0)
    [pair] = explain(model, vocabulary, split, [(3, 15)])
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    figure = pictures.pair_figure(pair, photograph)
    axes = {axis.get_title(): axis for axis in figure.axes}
    for title, values in (("region attention f", pair.region_attention), ("word attention g", pair.word_attention)):
        assert [bar.get_height() for bar in axes[title].patches] == pytest.approx(values.tolist())
    labels = [label.get_text() for label in axes["word attention g"].get_xticklabels()]
    assert labels == pair.words
    for title, matrix in (
        ("regions with regions, Hᵛ", pair.region_affinity),
        ("words with words, Hᵘ", pair.word_affinity),
    ):
        np.testing.assert_array_equal(axes[title].images[0].get_array(), matrix)
    word = next(number for number, text in enumerate(pair.words) if pair.words.count(text) == 1)
    regions = len(pair.boxes)
    ratios = pair.word_to_region[:, word] * regions**0.5
    for title, expected in (
        ("photograph", photograph),
        ("under f", heat.painted(photograph, pair.boxes, pair.region_attention * regions)),
        (f"{pair.words[word]}  up to {ratios.max():.1f}×", heat.painted(photograph, pair.boxes, ratios)),
    ):
        np.testing.assert_array_equal(axes[title].images[0].get_array(), np.asarray(expected))
    for title, count in (("region attention f", regions), ("word attention g", len(pair.words))):
        [line] = axes[title].lines
        assert line.get_ydata()[0] == 1 / count and line.get_label().startswith(f"an even share, 1/{count}")
    scale = axes["over photographs: attention as a multiple of an even share"]
    ticks = dict(zip((tick.get_text() for tick in scale.get_xticklabels()), scale.get_xticks(), strict=True))
    assert ticks["1/3 or less"] == -1 and ticks["as it is: an even share"] == 0 and ticks["3× or more"] == 1
    png = Image.open(io.BytesIO(pictures.to_png(lambda: figure)))
    assert png.size[0] == 1650 and png.mode == "RGB"
    # The legend is over the bars, not on them.
    for title in ("region attention f", "word attention g"):
        tops = [bar.get_window_extent().y1 for bar in axes[title].patches]
        assert axes[title].get_legend().get_window_extent().y0 > max(tops)


def test_affinities_of_features_are_drawn_where_they_are_negative(split, boxes):
    model, vocabulary = make_model(split, 0, intra="features")
    image = int(split.region_counts.argmax())
    [pair] = explain(model, vocabulary, split, [(image, 5 * image)])
    axes = {axis.get_title(): axis for axis in pictures.pair_figure(pair).axes}
    least = pair.region_affinity.min()
    assert least < 0 and axes["regions with regions, Hᵛ"].images[0].get_clim()[0] == pytest.approx(least)


def test_any_text_can_be_drawn(split, boxes, capsys):
    model, vocabulary = make_model(split, 0)
    texts = ["$5 or $10_{", "狗 在 雪", " ".join(["word1"] * 400)]
    money, snow, long = (pictures.pair_figure(pair) for pair in explain(model, vocabulary, split, [(3, text) for text in texts]))
    assert len(pictures.to_png(lambda: money)) > 1000
    labels = [label.get_text() for label in money.axes[2].get_xticklabels()]
    assert labels[1:3] == [r"<unk:\$>", "<unk:5>"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pictures.to_png(lambda: snow)) > 1000
    assert "warning: no font of matplotlib's has 3 of the characters" in capsys.readouterr().err
    assert long.get_size_inches()[1] < 32 and "the first 70 of 402 words" in long.get_suptitle()
    assert len(long.axes[2].get_xticklabels()) < 101


def test_a_retrieval_page(tmp_path):
    photo = tmp_path / "a.png"
    Image.new("RGB", (900, 300), (200, 30, 30)).save(photo)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    hits = [
        Hit("<b>a</b>.png", 0.75, True, photo, [("dog", 0.9), ("&", 0.1)], [((0, 0, 0.5, 1), 0.8), ((0.5, 0, 1, 1), 0.2)]),
        Hit("other", 0.5, False, broken),
    ]
    path = tmp_path / "page.html"
    write_retrieval_page(path, "Title & more", [Answer("<script>alert(1)</script>", hits, note="first"), Answer("nothing", [])])
    page = Page(path)
    assert {"Title & more", "<script>alert(1)</script>", "<b>a</b>.png", "dog", "&", "0.750", "Nothing was found."} <= set(
        page.text
    )
    assert page.right == 1 and "2 queries; a right answer is shown for 1 of 1." in page.text
    thumbnail, under = page.images
    assert thumbnail.size == under.size == (320, 107)
    red = np.array([200, 30, 30])
    # 1.6 times an even share, and 0.4 times: JPEG comes near.
    opaque, dark = 0.55 * np.log(1.6) / np.log(3), 1 + 0.65 * np.log(0.4) / np.log(3)
    for image, x, expected in (
        (thumbnail, 10, red),
        (under, 10, (1 - opaque) * red + opaque * np.array(heat.COLOUR)),
        (under, 310, dark * red),
    ):
        np.testing.assert_allclose(image.getpixel((x, 50)), expected, atol=6)
    assert any(text.startswith("Photographs, plain and under attention: 1/3 of an even share") for text in page.text)
    shades = re.findall(r'--a: ([\d.]+); --o: ([\d.]+)" title', path.read_text())
    # 1.8 times an even share of two words, and a fifth of it.
    assert shades == [(f"{0.55 * np.log(1.8) / np.log(3):.3f}", "1.000"), ("0.000", "0.500")]
    assert any("No picture of broken.jpg: it is not an image" in text for text in page.text)


def test_attention_that_is_nearly_even(tmp_path):
    """Then colours show nothing, and the page says why."""
    path = tmp_path / "page.html"
    note = "Attention is nearly even on this page, so there is hardly any colour: it is within 3% of an even share everywhere."
    for more, said in ((0.03, True), (0.2, False)):
        words = [("a", (1 + more) / 2), ("dog", (1 - more) / 2)]
        write_retrieval_page(path, "Title", [Answer("a dog", [Hit("1", 0.5, words=words)])])
        assert (note in Page(path).text) == said
    # There is nothing that could be even.
    write_retrieval_page(path, "Title", [Answer("a dog", [Hit("1", 0.5)])])
    assert "nearly even" not in " ".join(Page(path).text)
    assert heat.evenness(np.array([1.003, 0.999])) == "0.3%" and heat.evenness(np.array([])) == "0%"


def show(*arguments):
    return main(["show", *map(str, arguments)])


def test_the_retrieval_command(split, boxes, photos, model_file, tmp_path, capsys):
    data = ["--data", tmp_path, "--photos", photos]
    scores = whole_matrix([make_model(split, 0)], split).numpy()
    out = tmp_path / "page.html"
    assert show("retrieval", model_file, *data, "--queries", 3, "--top", 4, "--out", out) == 0
    page = Page(out)
    # Three times four photographs, each with the same under attention.
    assert len(page.images) == 24
    shown = [text for text in page.text if re.fullmatch(r"-?0\.\d{3}|-?1\.000", text)]
    asking = [0, 60, 119]
    expected = [np.sort(scores[:, caption])[::-1][:4] for caption in asking]
    assert [float(text) for text in shown] == pytest.approx(np.concatenate(expected).tolist(), abs=6e-4)
    assert page.right == sum(split.image_of_caption[caption] in np.argsort(-scores[:, caption])[:4] for caption in asking)
    place = 1 + int((np.delete(scores[:, 60], 12) >= scores[12, 60]).sum())
    assert f"its image is in place {place} of 24" in page.text
    assert show("retrieval", model_file, *data, "--direction", "image", "--queries", 2, "--limit", 20, "--out", out) == 0
    assert "model.safetensors on the first 20 images of test: image → text" in Page(out).text
    assert show("retrieval", model_file, *data, "--direction", "image", "--queries", 2, "--out", out) == 0
    page = Page(out)
    assert len(page.images) == 2 and split.captions[int(scores[0].argmax())] in page.text


@pytest.mark.parametrize("options", [{}, {"intra": "features"}], ids=["projected", "dense"])
def test_some_are_scored_as_in_the_whole_matrix(split, monkeypatch, options):
    monkeypatch.setattr(ranking, "_BATCH", {"cpu": 5})
    monkeypatch.setattr(ranking, "_SMALL_BATCH", 3)
    model, images, captions = make_model(split, 0, **options), np.array([2, 0, 9, 23]), np.arange(7, 119, 9)
    found = ranking.score_some(*model, split, images, captions)
    torch.testing.assert_close(found, whole_matrix([model], split)[images][:, captions], atol=2e-6, rtol=0)


def test_pair_and_training(split, boxes, photos, model_file, world, tmp_path, capsys):
    data = ["--data", tmp_path, "--photos", photos]
    assert show("pair", model_file, *data, "--image", 3, "--caption", 2, "--out", tmp_path / "pair.png") == 0
    drawn = Image.open(tmp_path / "pair.png")
    assert drawn.size[0] == 1650 and drawn.mode == "RGB"
    assert show("pair", model_file, *data, "--image", 3, "--text", "word1 <b>", "--out", tmp_path / "pair.html") == 0
    page = Page(tmp_path / "pair.html")
    assert len(page.images) == 1 and "3: word1 <b>" in page.text
    corners = [picture[0].getpixel((0, 0)) for picture in (page.images, page.dark)]
    assert corners == [(255, 255, 255), (26, 32, 39)]
    run = trainer(world, tmp_path / "run")
    run.run()
    assert show("training", tmp_path / "run", "--out", tmp_path / "training.html") == 0
    page = Page(tmp_path / "training.html")
    assert f"{run.best_rsum:.4g}" in page.text and len(page.images) == 1
    rows = pictures.read_metrics(tmp_path / "run")
    figure = pictures.training_figure(rows)
    curve = figure.axes[0].lines[0]
    assert curve.get_ydata().tolist() == [row["loss"] for row in rows if "loss" in row] and len(curve.get_ydata()) == 2
    axes = {axis.get_title() or axis.get_ylabel(): axis for axis in figure.axes}
    epochs = [row for row in rows if "rsum" in row]
    for line in axes["gradient norm before clipping"].lines:
        assert line.get_ydata().tolist() == [row[f"gradient_norm_{line.get_label()}"] for row in epochs]
    [clipped] = axes["% of steps clipped"].lines
    assert clipped.get_ydata().tolist() == [100 * row["clipped_share"] for row in epochs]
    assert "clipped_share" in page.text and f"{epochs[-1]['gradient_norm_median']:.4g}" in page.text


def test_runs_beside_each_other(tmp_path, capsys):
    header = ",".join(("epoch", "loss", "learning_rate", *pictures.EPOCH, "validation_images", "split_images"))
    width = len(pictures.EPOCH)
    for name, losses in (("one", (2, 1)), ("two$", (3, 2.5, 2))):
        (tmp_path / name).mkdir()
        rows = [f"{epoch},{loss},1e-3{width * ','}" for epoch, loss in enumerate(losses)]
        images = ",5,9" if name == "one" else ""
        rows += [f"{epoch},,{''.join(f',{7 * epoch + k}' for k in range(width))}{images}" for epoch in range(len(losses))]
        (tmp_path / name / "metrics.csv").write_text("\n".join((header, *rows)))
    runs = [tmp_path / "one", tmp_path / "two$"]
    assert show("training", *runs, "--out", tmp_path / "both.html") == 0
    page = Page(tmp_path / "both.html")
    assert len(page.images) == 1 and all(f"Epochs of {run}: validation, gradients" in page.text for run in runs)
    leads = [f"{runs[0]}: 1 epochs, 2 validations on the first 5 of 9 images. {runs[1]}: 2 epochs, 3 validations."]
    assert [text for text in page.text if "validations" in text] == leads
    figure = pictures.comparison_figure({run.name: pictures.read_metrics(run) for run in runs})
    loss, recall = ([line.get_ydata().tolist() for line in axes.lines] for axes in figure.axes)
    assert loss == [[2, 1], [3, 2.5, 2]] and [len(values) for values in recall] == [2, 3]
    assert recall[0][1] - recall[0][0] == 7
    labels = [line.get_label() for line in figure.axes[1].lines]
    assert labels == ["one on the first 5 of 9 images", r"two\$"]
    alone = pictures.training_figure(pictures.read_metrics(runs[0]))
    assert alone.axes[3].get_title().startswith("validation on the first 5 of 9 images\nbest rsum")
    capsys.readouterr()
    assert show("training", runs[0], runs[0], "--out", tmp_path / "a.png") == 1
    assert "RUN: expected each run once" in capsys.readouterr().err


def test_what_is_wrong_is_one_line(split, boxes, photos, model_file, tmp_path, capsys):
    def error(*arguments):
        assert show(*arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        return captured.err

    pair = ["pair", model_file, "--data", tmp_path, "--image"]
    found = error(*pair, "x", "--out", "a.png")
    assert "--image: expected an id of test in " in found
    assert ", such as 0, 1, 2, a number below 24, SPLIT:ID, " in found and "24 in test), or a photograph's file, got 'x'" in found
    assert "24 in test), or a photograph's file, got 'test:99'" in error(*pair, "test:99", "--out", "a.png")
    assert "--caption: expected 0 to 4, the captions of 3, got 5" in error(*pair, 3, "--caption", 5, "--out", tmp_path / "a.png")
    assert "--out: expected a file that ends in .png or .html" in error(*pair, 3, "--out", "a.gif")
    assert "--out: expected a file in a folder that is there" in error(*pair, 3, "--out", tmp_path / "no" / "a.png")
    assert "--text: expected words, got none" in error(*pair, 3, "--text", " ", "--out", tmp_path / "a.png")
    (photos / "3.png").unlink()
    expected = "--photos: expected a photograph of 3, found none; there: 0.png, 1.png, 10.png"
    assert expected in error(*pair, 3, "--photos", photos, "--out", tmp_path / "a.png")
    (photos / "3.png").write_bytes(b"")
    assert "3.png: expected a photograph: the file is empty" in error(*pair, 3, "--photos", photos, "--out", tmp_path / "a.png")
    assert "metrics.csv: expected the metrics of a run" in error("training", tmp_path, "--out", tmp_path / "a.png")
    (tmp_path / "metrics.csv").write_text("step,epoch\n1,x\n")
    assert "metrics.csv: expected numbers in every row" in error("training", tmp_path, "--out", tmp_path / "a.png")
    (tmp_path / "metrics.csv").write_text("step,epoch,loss,learning_rate,seconds,rsum\n1,1,2,1,,\n2,1,,,3,4\n")
    assert "metrics.csv: expected i2t_r1, i2t_r5" in error("training", tmp_path, "--out", tmp_path / "a.png")
    (tmp_path / "metrics.csv").write_text("step,epoch,loss,learning_rate\n1,1,2\n")
    assert "metrics.csv: expected learning_rate in line 2" in error("training", tmp_path, "--out", tmp_path / "a.png")
    retrieval = ["retrieval", model_file, "--data", tmp_path, "--out"]
    assert "--out: expected a file that ends in .html" in error(*retrieval, "a.png")
    assert "--queries: expected at least 1, got 0" in error(*retrieval, tmp_path / "a.html", "--queries", 0)


def test_photographs_are_found_as_by_extraction(split, boxes, photos, model_file, tmp_path, capsys):
    """Without an ending, behind a link to a folder; and none where two different files have the name."""
    (tmp_path / "more").mkdir()
    (photos / "3.png").rename(tmp_path / "more" / "3")
    (photos / "link").symlink_to(tmp_path / "more")
    pair = ["pair", model_file, "--data", tmp_path, "--photos", photos, "--image", 3, "--out", tmp_path / "pair.png"]
    retrieval = ["retrieval", model_file, "--data", tmp_path, "--photos", photos, "--queries", 1, "--top", 24, "--out"]
    page = tmp_path / "page.html"
    assert show(*pair) == 0 and show(*retrieval, page) == 0
    assert len(Page(page).images) == 48

    for name in ("one", "two"):
        (tmp_path / "more" / name).mkdir()
        Image.new("RGB", (6, 4), "blue" if name == "one" else "red").save(tmp_path / "more" / name / "4.png")
    (photos / "4.png").unlink()
    pair[pair.index(3)] = 4
    capsys.readouterr()
    assert show(*pair) == 1
    expected = f"4: expected one photograph of this name in {photos}, found different files: link/one/4.png, link/two/4.png"
    assert capsys.readouterr().err == f"caan show: error: {expected}\n"
    assert show(*retrieval, page) == 0
    assert len(Page(page).images) == 46 and any(f"No picture: {expected[3:]}" in text for text in Page(page).text)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("kind", ["retrieval", "pair"])
def test_a_browser_shows_the_page(split, boxes, photos, model_file, tmp_path, capsys, kind):
    out, shot = tmp_path / "page.html", tmp_path / "shot.png"
    options = {"retrieval": ["--queries", 2], "pair": ["--image", 3]}[kind]
    assert show(kind, model_file, "--data", tmp_path, "--photos", photos, *options, "--out", out) == 0
    # Any name that the page asked for would be one that there is not.
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    # The pair's page as a reader sees it whose system is dark.
    command += ["--blink-settings=preferredColorScheme=0"] if kind == "pair" else []
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900", f"--screenshot={shot}", out.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    assert pixels.shape == (1200 * 900, 3)
    # A photograph under attention is on the screen: its colours are many.
    assert len(np.unique(pixels, axis=0)) > 200
    # Letters are light on a dark page, and cards on a light one.
    light = (pixels.min(axis=1) > 220).mean()
    assert light < 0.03 if kind == "pair" else light > 0.5

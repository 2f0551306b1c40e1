"""What a caller has left on in torch and NumPy reaches no result, and nothing is left on for the caller."""

import contextlib
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from models import new_model

from caan import CAAN, ModelConfig, Vocabulary, checkpoint
from caan.attention import explain
from caan.data import CaptionBatch, ImageBatch, load_scan_split
from caan.evaluation import evaluate
from caan.gallery import Searcher, build_index
from caan.presets import TrainingConfig
from caan.ranking import score_some
from caan.training import Trainer


@pytest.fixture
def split(scan_folder):
    return load_scan_split(scan_folder, "dev")


@pytest.fixture
def vocabulary(split):
    return Vocabulary.from_captions(split.captions, 1)


@pytest.fixture(params=["semantics", "features"])
def run_folder(request, vocabulary, tmp_path):
    (tmp_path / "run").mkdir()
    checkpoint.save_model(tmp_path / "run" / "best.safetensors", new_model(vocabulary, intra=request.param), vocabulary)
    return tmp_path / "run"


def everything(run_folder, split, place):
    """All that can be asked of a model, and what comes of it, as arrays."""
    model, vocabulary, _ = checkpoint.load_model(run_folder)
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" for x in model.state_dict().values())
    place.mkdir()
    evaluate([(model, vocabulary)], split, save_scores=place / "scores.npy", workers=0)
    every = np.arange(split.num_images), np.arange(len(split.captions))
    found = [np.load(place / "scores.npy"), score_some(model, vocabulary, split, *every).numpy()]
    for pair in explain(model, vocabulary, split, [(0, 3), (2, "seen well")], boxes=[None] * split.num_images):
        found += [np.float32(pair.score), pair.word_attention, pair.alignment, pair.region_affinity]
    if not model.dense:
        build_index(place / "index", model, vocabulary, run_folder, split, say=lambda text: None)
        searcher = Searcher(place / "index")
        for query in (searcher.text("image 3 is seen well"), searcher.features(split.read_regions(2)), searcher.image(1)):
            hits = searcher.search(query, 5, 6)
            found += [query.vector, hits.items, hits.scores]
        found.append(searcher.word_attention(searcher.text("very well"), np.array([4, 1])))
    return found


def trained(run_folder, split, place):
    """A few steps of a run."""
    _, vocabulary, facts = checkpoint.load_model(run_folder)
    config = TrainingConfig(
        epochs=1, batch_size=8, ramp_steps=0, decay_epochs=(), warmup_epochs=0.5, warmup_form="mean", average=0.9
    )
    model_config = ModelConfig(**{**facts["model"], "region_drop": 0.3, "word_drop": 0.3, "dropout": 0.1, "standardize": True})
    Trainer(place / "trained", split, split, vocabulary, model_config, config, say=lambda text: None).run()
    tensors, _ = checkpoint.read(place / "trained" / "last.safetensors")
    assert all(x.dtype in (torch.float32, torch.int64, torch.float64, torch.uint8) for x in tensors.values())
    return [tensors[name].numpy() for name in sorted(tensors) if name.startswith(("model", "average", "optimizer", "metrics"))]


@contextlib.contextmanager
def setting(change, value, back):
    change(value)
    try:
        yield
    finally:
        change(back)


STATES = {
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "half as default": lambda: setting(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "denormals flushed": lambda: setting(torch.set_flush_denormal, True, False),
    "NumPy raises": lambda: np.errstate(all="raise"),
    "warnings raise": lambda: raising_warnings(),
    "anomaly detection": torch.autograd.detect_anomaly,
}


@contextlib.contextmanager
def raising_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def state():
    """What a caller could have set, as it is now."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "products": torch.get_float32_matmul_precision(),
        "numpy": np.geterr(),
        "anomaly": torch.is_anomaly_enabled(),
        "filters": len(warnings.filters),
        "flushed": flushes(),
    }


def flushes():
    return bool(torch.full((), 1e-38, dtype=torch.float32, device="cpu").mul(0.01).eq(0))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("work", [everything, trained])
@pytest.mark.parametrize("name", STATES)
def test_the_callers_state_is_nobody_elses(run_folder, split, tmp_path, name, work):
    expected = work(run_folder, split, tmp_path / "plain")
    with STATES[name]():
        before = state()
        found = work(run_folder, split, tmp_path / "under")
        assert state() == before
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)


def test_a_model_is_float32_on_the_cpu_whatever_the_defaults_are(vocabulary):
    plain = new_model(vocabulary)
    for name in ("default device", "default dtype"):
        with STATES[name]():
            model = CAAN(plain.config)
        assert {(x.dtype, x.device.type) for x in model.state_dict().values()} == {(torch.float32, "cpu")}


def batches():
    captions = CaptionBatch(torch.randint(4, 9, (5, 7)), torch.tensor([7, 3, 7, 1, 5]), torch.arange(5))
    return captions, ImageBatch(torch.randn(5, 4, 6), torch.tensor([4, 1, 2, 4, 3]), torch.arange(5))


def threads_of_a_new_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]


def test_encoding_leaves_the_number_of_threads_alone(vocabulary, threads):
    threads(3)
    model = new_model(vocabulary).eval()
    captions, images = batches()

    def encode(number):
        model.prepare_captions(captions)
        model.prepare_images(images)
        return torch.get_num_threads()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(encode, range(200))) == {3}
    assert torch.get_num_threads() == threads_of_a_new_thread() == 3


def test_encoding_is_the_same_on_any_number_of_threads(vocabulary, threads):
    # The library shares out the product of one row and a wide matrix by its depth.
    torch.manual_seed(0)
    model = CAAN(ModelConfig(512, 50, width=1024, hidden_width=8)).eval()
    captions = CaptionBatch(torch.randint(4, 50, (1, 7)), torch.tensor([7]), torch.arange(1))
    images = ImageBatch(torch.randn(1, 9, 512), torch.tensor([9]), torch.arange(1))
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append((model.prepare_captions(captions).products, model.prepare_images(images).products))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_autocast_holds_in_a_models_own_methods(vocabulary):
    model = new_model(vocabulary).eval()
    captions, _ = batches()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.prepare_captions(captions).products.dtype == torch.bfloat16
    assert model.prepare_captions(captions).products.dtype == torch.float32

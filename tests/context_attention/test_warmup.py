"""What `warmup` launches, and what a kernel says that is compiled too late."""

import importlib

import cases
import pytest
import torch

import caan_kernels as ck
from caan_kernels.context_attention import cuda

WIDTH, HIDDEN = 24, 40


def recorded(monkeypatch, launched: set) -> None:
    """Triton's kernels with the constants that they are compiled for, and CUDA's by name, are noted and not run."""
    if "triton" not in cases.KERNELS:

        class Ops:
            def __getattr__(self, name):
                return lambda *arguments: launched.add(name)

        return monkeypatch.setattr(cuda, "_ops", Ops())
    from caan_kernels.context_attention.triton import launch

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *arguments, **constants: launched.add((self.name, *sorted(constants.items())))

    for name in [x for x in vars(launch) if x.endswith("_kernel")]:
        monkeypatch.setattr(launch, name, Kernel(name))


@pytest.mark.parametrize("options", [{}, {"similarity": "cosine", "inter": False}], ids=["paper", "other"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.skipif("cpu" in cases.KERNELS, reason="nothing is compiled for the CPU")
def test_nothing_is_left_to_compile(dtype, options, monkeypatch):
    """Batches of any number, lengths and padding up to those that were warmed up take no kernel that was not launched then."""
    backend = next(iter(cases.KERNELS))
    warm, trained = set(), set()
    recorded(monkeypatch, warm)
    ck.warmup("cpu", dtype, WIDTH, HIDDEN, regions=36, words=50, backend=backend, **options)
    monkeypatch.undo()
    recorded(monkeypatch, trained)
    for images, captions, words in ((3, 5, 7), (5, 2, 16), (2, 4, 33), (2, 2, 50)):
        case = cases.problem((images, 36, captions, words, WIDTH, HIDDEN), dtype)
        for lengths in (True, False):
            given = (case.region_lengths, case.word_lengths) if lengths else (None, None)
            for pairs in (None, torch.tensor([[0, 1], [1, 0], [1, 1]])):
                regions = case.regions.clone().requires_grad_()
                ck.context_attention(regions, case.words, case.weights, *given, pairs, backend=backend, **options).sum().backward()
                with torch.no_grad():
                    ck.context_attention(regions, case.words, case.weights, *given, pairs, backend=backend, **options)
    assert trained and trained <= warm


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.skipif("cpu" not in cases.KERNELS, reason="the kernels of other processes are no faster than they are")
def test_on_the_cpu(backend):
    """There is nothing to compile; the state that a caller sees stays as it was."""
    before = torch.random.get_rng_state()
    with torch.no_grad():
        assert ck.warmup("cpu", torch.float32, WIDTH, HIDDEN, backend=backend) is None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        ck.warmup(torch.device("cpu"), torch.float16, WIDTH, HIDDEN, regions=5, words=3, intra=None, backend=backend)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"device": "gpu"}, ValueError, "device: expected a device, such as 'cpu' or 'cuda:0', got 'gpu'"),
        ({"device": None}, TypeError, "device: expected a device, such as 'cpu' or 'cuda:0', got None"),
        ({"dtype": torch.int32}, TypeError, "dtype: expected torch.float16, .* or torch.float64, got torch.int32"),
        ({"dtype": None}, TypeError, "dtype: expected torch.float16, .* or torch.float64, got None"),
        ({"width": 0}, ValueError, "width: expected at least 1, got 0"),
        ({"width": "24"}, TypeError, "width: expected an integer, got '24'"),
        ({"hidden": -4}, ValueError, "hidden: expected at least 1, got -4"),
        ({"regions": -4}, ValueError, "regions: expected at least 0, got -4"),
        ({"words": -1}, ValueError, "words: expected at least 0, got -1"),
        ({"words": 8.5}, TypeError, "words: expected an integer, got 8.5"),
        ({"similarity": "sine"}, ValueError, "similarity: expected 'dot' or 'cosine', got 'sine'"),
        ({"intra": "features"}, ValueError, "intra: expected 'semantics' or None, got 'features', which has no kernels"),
        ({"backend": "gpu"}, ValueError, "backend: expected 'auto', .*, got 'gpu'"),
    ],
    ids=str,
)
def test_what_does_not_fit(changes, error, message):
    given = {"device": "cpu", "dtype": torch.float32, "width": WIDTH, "hidden": HIDDEN, **changes}
    with pytest.raises(error, match=f"^{message}$"):
        ck.warmup(**given)


@pytest.mark.parametrize("capturing", [False, True])
def test_a_capture_compiles_nothing(capturing, monkeypatch):
    capture = pytest.importorskip("caan_kernels.core.triton.capture", exc_type=ImportError)

    class Kernel:
        __name__ = "some_kernel"

        def _do_compile(self, *arguments):
            return arguments

    kernel = Kernel()
    capture.refuse_in_capture({"some_kernel": kernel, "other": torch})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    if capturing:
        with pytest.raises(RuntimeError, match=r"some_kernel: expected to be compiled before .* caan_kernels\.warmup"):
            kernel._do_compile(1, 2)
    else:
        assert kernel._do_compile(1, 2) == (1, 2)


@pytest.mark.skipif(cases.INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("operator", ["context_attention", "max_similarity"])
def test_every_kernel_of_triton_refuses(operator, monkeypatch):
    pytest.importorskip("triton")
    launch = importlib.import_module(f"caan_kernels.{operator}.triton.launch")
    kernels = [x for name, x in vars(launch).items() if name.endswith("_kernel")]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert kernels
    for kernel in kernels:
        with pytest.raises(RuntimeError, match=f"{kernel.__name__}: expected to be compiled before"):
            kernel._do_compile()

"""What `warmup` launches, and what a kernel says that is compiled too late."""

import importlib

import cases
import pytest
import torch

import caan_kernels as ck
from caan_kernels.context_attention import cuda
from caan_kernels.core.gpu import limits

WIDTH, HIDDEN = 24, 40


def recorded(monkeypatch, launched: set) -> None:
    """Triton's kernels with what they are compiled for, and CUDA's by name, are noted and not run."""
    if "triton" not in cases.KERNELS:

        class Ops:
            def __getattr__(self, name):
                return lambda *arguments: launched.add(name)

        return monkeypatch.setattr(cuda, "_ops", Ops())
    from specialisation import specialised
    from triton.runtime.jit import JITFunction

    from caan_kernels.context_attention.triton import launch

    class Kernel:
        def __init__(self, interpreted):
            self.compiled = JITFunction(interpreted.fn, **interpreted.kwargs)

        def __getitem__(self, grid):
            return self.note

        def note(self, *arguments, **named):
            launched.add((self.compiled.__name__, repr(specialised(self.compiled, arguments, named))))

    for name in [x for x in vars(launch) if x.endswith("_kernel")]:
        monkeypatch.setattr(launch, name, Kernel(vars(launch)[name]))


def at_odd_address(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, at an address that is no multiple of 16."""
    moved = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    assert moved.data_ptr() % 16
    return moved


@pytest.mark.parametrize("options", [{}, {"similarity": "cosine", "inter": False}], ids=["paper", "other"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.skipif("cpu" in cases.KERNELS, reason="nothing is compiled for the CPU")
def test_nothing_is_left_to_compile(dtype, options, monkeypatch):
    """Batches of any number, lengths and padding up to those that were warmed up take no kernel that was not launched then.

    Tensors are views that begin anywhere, and a call may take many launches.
    """
    backend = next(iter(cases.KERNELS))
    warm, trained = set(), set()
    recorded(monkeypatch, warm)
    ck.warmup("cpu", dtype, WIDTH, HIDDEN, regions=36, words=50, backend=backend, **options)
    monkeypatch.undo()
    recorded(monkeypatch, trained)
    for images, captions, rows, longest in ((3, 5, 7, 1), (2, 1, 16, 1), (5, 3, 33, 1e-9), (2, 2, 50, 1)):
        monkeypatch.setattr(limits, "LONGEST", longest)
        case = cases.problem((images, 36, captions, rows, WIDTH, HIDDEN), dtype)
        words, weights = at_odd_address(case.words), ck.ContextAttentionWeights(*map(at_odd_address, case.weights[:7]))
        both = at_odd_address(case.region_lengths), at_odd_address(case.word_lengths)
        listed = at_odd_address(torch.tensor([[0, 0], [1, 0], [1, captions - 1]]))
        for given in (both, (None, both[1]), (None, None)):
            for pairs in (None, listed):
                regions = at_odd_address(case.regions).requires_grad_()
                ck.context_attention(regions, words, weights, *given, pairs, backend=backend, **options).sum().backward()
                with torch.no_grad():
                    ck.context_attention(regions, words, weights, *given, pairs, backend=backend, **options)
    assert trained
    assert not trained - warm


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

"""Which backend runs, and the reasons given when one cannot."""

import ctypes
import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cases
import pytest
import torch

import caan_kernels as ck
from caan_kernels.context_attention.call import Call, Matrices, Side, Vectors
from caan_kernels.core import backends, cuda, library, triton
from caan_kernels.core.records import flatten

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# The backend of this process that takes CPU tensors, and the devices of the backends for GPUs.
ON_CPU = "triton" if cases.INTERPRETED else "cuda" if cases.EMULATED else "cpu"
OF_TRITON = CPU if cases.INTERPRETED else GPU
OF_CUDA = CPU if cases.EMULATED else GPU

compiled = pytest.mark.skipif(ON_CPU != "cpu", reason="the CPU tensors of this process have another backend")
interpreted = pytest.mark.skipif(not cases.INTERPRETED, reason="the interpreter is off")
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def test_every_backend_gives_a_reason():
    available = ck.available_backends()
    assert set(available) == {"reference", "cpu", "triton", "cuda"}
    assert all(isinstance(usable, bool) and reason for usable, reason in available.values())
    assert available["reference"][0]
    for name in cases.KERNELS:
        assert available[name][0], available[name][1]


@compiled
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_without_a_gpu():
    usable, reason = ck.available_backends()["triton"]
    assert not usable
    assert reason.startswith(("there is no CUDA device", "Triton cannot be imported"))
    with pytest.raises(RuntimeError, match=f"backend 'triton' cannot run this call: {reason}"):
        cases.problem("odd", torch.float32).call(backend="triton")


@compiled
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu():
    usable, reason = ck.available_backends()["cuda"]
    assert not usable
    built = bool(ck.build_info()["cuda_architectures"])
    assert reason.startswith("there is no CUDA device" if built else "caan_kernels was built without CUDA kernels")
    with pytest.raises(RuntimeError, match=f"backend 'cuda' cannot run this call: {reason}"):
        cases.problem("odd", torch.float32).call(backend="cuda")


@pytest.mark.skipif(not cases.EMULATED, reason="the CUDA kernels are not emulated")
def test_emulated_kernels_take_the_cpu_from_the_compiled_backend():
    available = ck.available_backends()
    assert available["cpu"] == (False, "CAAN_CUDA_EMULATED gives CPU tensors to the emulated CUDA kernels in this process")
    assert "emulated" in available["cuda"][1]


@interpreted
def test_the_interpreter_takes_the_cpu_from_the_compiled_backend():
    available = ck.available_backends()
    assert available["cpu"] == (False, "TRITON_INTERPRET=1 gives CPU tensors to Triton's interpreter in this process")
    assert "interpreter" in available["triton"][1]
    assert ck.build_info()["cpu_instruction_set"] == "none"


@compiled
def test_build_info():
    info = ck.build_info()
    assert info["version"] and info["compiler"] and info["torch_target_abi"]
    assert info["cpu_instruction_set"] in info["cpu_instruction_sets"]
    assert isinstance(info["cuda_architectures"], list)
    assert info["cpu_instruction_set"] in ck.available_backends()["cpu"][1]


def test_cpu_tensors():
    for dtype in cases.KERNEL_DTYPES[ON_CPU]:
        assert backends.select("context_attention", "auto", CPU, dtype) == ON_CPU
        assert backends.select("context_attention", "auto", CPU, dtype, gradient=True) == ON_CPU
    assert backends.select("context_attention", "auto", CPU, torch.float32, gradient=True, maps=True) == "reference"
    assert backends.select("context_attention", "auto", torch.device("meta"), torch.float32) == "reference"


@with_gpu
def test_cuda_tensors():
    for dtype in cases.KERNEL_DTYPES["triton"]:
        assert backends.select("context_attention", "auto", GPU, dtype) == "cuda"
        assert backends.select("context_attention", "auto", GPU, dtype, gradient=True, regions=36) == "cuda"
    assert backends.select("context_attention", "auto", GPU, torch.float32, gradient=True, maps=True) == "reference"


def test_triton_is_not_for_amd(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert triton.cannot_run(torch.device("cuda", 1)) == "its kernels are for NVIDIA GPUs: not all of them compile for AMD's"


@pytest.mark.skipif("triton" not in cases.KERNELS, reason="the Triton backend cannot run here")
def test_what_triton_does_not_take_goes_elsewhere(monkeypatch):
    assert backends.select("context_attention", "auto", OF_TRITON, torch.float64) == "reference"
    monkeypatch.setattr(cuda, "missing", lambda: "it was not built")
    assert backends.select("context_attention", "auto", OF_TRITON, torch.float32, words=129) == "reference"
    assert backends.select("context_attention", "auto", OF_TRITON, torch.float32, regions=257, gradient=True) == "reference"
    for taken in ({"regions": 257, "words": 128}, {"regions": 256, "gradient": True}):
        assert backends.select("context_attention", "auto", OF_TRITON, torch.float32, **taken) == "triton"


def test_cuda_tensors_without_a_gpu(monkeypatch):
    for backend in (triton, cuda):
        monkeypatch.setattr(backend, "missing", lambda: "there is no CUDA device")
    assert backends.select("context_attention", "auto", GPU, torch.float32) == "reference"


def test_old_gpus(monkeypatch):
    for backend in (triton, cuda):
        monkeypatch.setattr(backend, "missing", lambda: "")
    for backend in (triton, cuda):
        monkeypatch.setattr(backend, "DEVICE_TYPES", ("cuda",))
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(cuda, "EMULATED", "")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(cuda, "_no_code", lambda device: "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for capability, usable in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        reason = "" if usable else "it needs compute capability 8.0 or later, Tesla T4 has 7.5"
        for name in ("triton", "cuda"):
            assert backends.can_run("context_attention", name, GPU, torch.float16) == (usable, reason)
        assert backends.select("context_attention", "auto", GPU, torch.float16) == ("cuda" if usable else "reference")
    monkeypatch.setattr(cuda, "missing", lambda: "it was not built")
    assert backends.select("context_attention", "auto", GPU, torch.float16) == "triton"


REASONS = [
    *(
        pytest.param(*row, marks=compiled)
        for row in (
            ("cpu", GPU, torch.float32, {}, "its tensors must be on the CPU, these are on cuda:0"),
            ("cpu", CPU, torch.float8_e4m3fn, {}, "it has no kernels for torch.float8_e4m3fn"),
            ("cpu", CPU, torch.float32, {"maps": True, "gradient": True}, "its maps have no derivative"),
        )
    ),
    *(
        pytest.param(*row, marks=pytest.mark.skipif("triton" not in cases.KERNELS, reason="it cannot run here"))
        for row in (
            ("triton", OF_TRITON, torch.float64, {}, "it has no kernels for torch.float64"),
            ("triton", OF_TRITON, torch.float32, {"maps": True, "gradient": True}, "its maps have no derivative"),
            ("triton", OF_TRITON, torch.float32, {"words": 129}, "it takes at most 128 words a caption; these have 129"),
            ("triton", OF_TRITON, torch.float32, {"regions": 257, "maps": True}, "it has maps for at most 256 regions an image"),
        )
    ),
    *(
        pytest.param(*row, marks=pytest.mark.skipif("cuda" not in cases.KERNELS, reason="it cannot run here"))
        for row in (
            ("cuda", OF_CUDA, torch.float64, {}, "it has no kernels for torch.float64"),
            ("cuda", OF_CUDA, torch.float32, {"maps": True, "gradient": True}, "its maps have no derivative"),
            ("cuda", OF_CUDA, torch.float64, {"regions": 300, "words": 141}, "it has no kernels for torch.float64"),
        )
    ),
    pytest.param("cuda", CPU, torch.float32, {}, "its tensors must be on a CUDA device, these are on cpu", marks=with_gpu),
    pytest.param("triton", CPU, torch.float32, {}, "its tensors must be on a CUDA device, these are on cpu", marks=with_gpu),
    pytest.param("triton", GPU, torch.float32, {}, "TRITON_INTERPRET=1 runs it on CPU tensors", marks=interpreted),
]


@pytest.mark.parametrize(("name", "device", "dtype", "wanted", "reason"), REASONS)
def test_reasons(name, device, dtype, wanted, reason):
    usable, found = backends.can_run("context_attention", name, device, dtype, **wanted)
    assert not usable
    assert found.startswith(reason)
    with pytest.raises(RuntimeError, match=f"backend '{name}' cannot run this call: {reason}"):
        backends.select("context_attention", name, device, dtype, **wanted)


@pytest.mark.parametrize("name", ["triton", "cuda"])
@pytest.mark.parametrize("listed", [False, True])
def test_operators_of_a_gpu_trace_without_one(name, listed):
    """Shapes, derivatives and schemas, on tensors that have no memory."""
    V, VQ, U, UQ = (
        torch.empty(*shape, device="meta", requires_grad=True) for shape in ((3, 4, 6), (3, 4, 18), (2, 5, 6), (2, 5, 24))
    )
    vectors = Vectors(torch.empty(9, device="meta", requires_grad=True), torch.empty(9, device="meta"))
    pairs = torch.empty(7, 2, dtype=torch.int64, device="meta") if listed else None
    arguments = flatten(Call(Side(V, VQ, None), Side(U, UQ, None), vectors, Matrices(), pairs, cases.PAPER, name))
    assert set(torch.library.opcheck(torch.ops.caan_kernels.pair_scores.default, tuple(arguments)).values()) == {"SUCCESS"}
    scores = torch.ops.caan_kernels.pair_scores(*arguments)
    assert scores.shape == ((7,) if listed else (3, 2)) and scores.dtype == torch.float32
    lengths = torch.empty(3, dtype=torch.int64, device="meta")
    torch.library.opcheck(torch.ops.caan_kernels.project.default, (V, torch.empty(6, 5, device="meta"), lengths, name))


@pytest.mark.parametrize(("version", "usable"), [("3.5.1", False), ("3.6.0", True), ("4.0.0+git1", True)])
def test_an_old_triton_is_named(version, usable, monkeypatch):
    triton = pytest.importorskip("triton")
    from caan_kernels.core import triton as backend

    monkeypatch.setattr(triton, "__version__", version)
    backend._unusable.cache_clear()
    found = backend._unusable()
    backend._unusable.cache_clear()
    assert found == ("" if usable else f"Triton {version} does not compile its kernels: expected 3.6 or newer")


@compiled
def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: "the compiled library is missing")
    case = cases.problem("odd", torch.float32)
    assert ck.available_backends()["cpu"] == (False, "the compiled library is missing")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run this call: the compiled library is missing"):
        case.call(backend="cpu")
    assert torch.equal(case.call(), case.call(backend="reference"))


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"backend: expected 'auto', 'reference', .*, got 'fpga'"):
        cases.problem("odd").call(backend="fpga")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (0, ""),
        (209, "caan_kernels was built without code for Example GPU, compute capability 12.1: build it with CAAN_CUDA_ARCHS=121"),
        (35, "the GPU's driver is older than the CUDA that the kernels were compiled with"),
        (999, "CUDA error 999 while looking up the kernels on Example GPU"),
    ],
)
def test_a_gpu_that_the_library_has_no_code_for(error, reason, monkeypatch):
    monkeypatch.setattr(cuda, "EMULATED", "")
    monkeypatch.setattr(cuda, "_ops", SimpleNamespace(cuda_device_error=lambda device: error))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Example GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 1))
    cuda._no_code.cache_clear()
    found = cuda.cannot_run(torch.device("cuda", 0))
    cuda._no_code.cache_clear()
    assert found.startswith(reason) and bool(found) == bool(reason)


@compiled
def test_kernels_are_looked_up_without_a_gpu():
    if torch.cuda.is_available() or not ck.build_info()["cuda_architectures"]:
        pytest.skip("it is for a library with CUDA kernels on a machine without a GPU")
    assert torch.ops.caan_kernels.cuda_device_error(0) != 0


@compiled
def test_the_package_may_be_imported_again():
    script = Path(__file__).with_name("imported_twice.py")
    run = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, cwd=script.parents[1])
    assert run.returncode == 0, run.stderr


@compiled
@pytest.mark.parametrize("name", ["max_similarity", "project_regions"])
def test_a_call_leaves_no_memory_behind(name):
    """What an operator's arguments become in C++ is given back, the backend's name among them."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("this C library does not count what is allocated")

    class Counts(ctypes.Structure):
        _fields_ = [
            (field, ctypes.c_size_t) for field in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks ford keep".split()
        ]

    library.mallinfo2.restype = Counts
    items = torch.ones(1, 1, 2)
    square, vector = torch.ones(2, 2), torch.ones(2)
    second = items if name == "max_similarity" else ck.ContextAttentionWeights(*[square] * 5, vector, vector)

    def used_by(calls):
        gc.collect()
        before = library.mallinfo2().uordblks
        for _ in range(calls):
            getattr(ck, name)(items, second, backend="cpu")
        return library.mallinfo2().uordblks - before

    used_by(100)
    # A string lost at each call would be 48 bytes a call.
    assert min(used_by(2000) for _ in range(3)) < 2000 * 16

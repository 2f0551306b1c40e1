"""Does an installed wheel work?

Compiled kernels against the reference, forward and backward; an error; the files of `caan` and its command; what it was built by.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch

import caan
import caan_kernels as ck

SOURCES = Path(__file__).parents[1] / "caan"


def main() -> None:
    package = Path(ck.__file__).parent
    if not package.is_relative_to(sys.prefix):
        raise SystemExit(f"error: {package} is not the installed package: {sys.prefix} was expected")
    compilers = [name for name in ("cc", "gcc", "g++", "c++", "clang++", "nvcc") if shutil.which(name)]
    if compilers:
        raise SystemExit(f"error: a wheel is tried without a compiler, and there is {', '.join(compilers)}")
    usable, reason = ck.available_backends()["cpu"]
    if not usable:
        raise SystemExit(f"error: backend 'cpu' cannot be used: {reason}")

    torch.manual_seed(0)
    width, hidden = 64, 48
    shapes = [(width, width), *[(width, hidden)] * 4, (hidden,), (hidden,)]
    tensors = [(torch.randn(shape) / shape[0] ** 0.5).requires_grad_() for shape in shapes]
    regions = torch.nn.functional.normalize(torch.randn(5, 36, width), dim=-1).requires_grad_()
    words = torch.nn.functional.normalize(torch.randn(7, 13, width), dim=-1).requires_grad_()
    lengths = torch.tensor([13, 3, 8, 1, 13, 6, 9])

    def derived(backend: str) -> list[torch.Tensor]:
        scores = ck.context_attention(regions, words, ck.ContextAttentionWeights(*tensors), word_lengths=lengths, backend=backend)
        return [scores, *torch.autograd.grad(scores.square().sum(), [regions, words, *tensors])]

    for found, expected in zip(derived("cpu"), derived("reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found, expected = (ck.max_similarity(regions, words, word_lengths=lengths, backend=name) for name in ("cpu", "reference"))
    torch.testing.assert_close(found, expected)
    # An error crosses the libraries of two builds: the right kind must come out.
    try:
        torch.ops.caan_kernels.tanh_(torch.ones(4, dtype=torch.int32))
    except RuntimeError as error:
        assert "expected dtype float32 or float64" in str(error), error
    else:
        raise SystemExit("error: an op took a dtype that it has no kernel for")

    installed = Path(caan.__file__).parent
    files = [x.relative_to(SOURCES) for x in SOURCES.rglob("*") if x.suffix in (".py", ".html", ".typed")]
    missing = [str(x) for x in files if not (installed / x).exists()]
    if missing or not files:
        raise SystemExit(f"error: {installed} lacks {', '.join(missing) or 'everything'}")
    command = [Path(sys.prefix) / "bin" / "caan", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split()[-1] == caan.__version__ == ck.__version__, said

    info = ck.build_info()
    python = ".".join(map(str, sys.version_info[:3]))
    built = f"{info['compiler']}, torch {info['torch_built_with']}, CUDA {' '.join(info['cuda_architectures']) or 'none'}"
    print(f"caan_kernels {info['version']} works: Python {python}, torch {torch.__version__}, {reason}; built by {built}")


if __name__ == "__main__":
    main()

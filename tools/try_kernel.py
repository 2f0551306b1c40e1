"""Load what tools/build_kernel.py made with the published `kernels` package, beside the installed caan_kernels, and compare.

python tools/try_kernel.py [FOLDER]     by default build/kernel
"""

import json
import sys
from pathlib import Path

import torch
from kernels import get_local_kernel
from kernels._rust import Build, Digest, DigestAlgorithm, Metadata

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import caan_kernels as ck  # noqa: E402


def main(folder: Path) -> None:
    Build.open(folder)
    kernel = get_local_kernel(folder, backend="cpu" if not torch.cuda.is_available() else None)
    place = Path(kernel.__file__).parent
    metadata = Metadata.read_from_file(place / "metadata.json")
    found = Digest.hash_variant(DigestAlgorithm.SHA256, place).files
    assert found == json.loads((place / "metadata.json").read_text())["digest"]["files"]
    assert kernel.build_info()["namespace"] == metadata.id == kernel.__name__, metadata.id
    assert hasattr(getattr(torch.ops, metadata.id), "pair_scores")
    assert kernel.context_attention is not ck.context_attention
    usable, reason = kernel.available_backends()["cpu"]
    assert usable, reason

    torch.manual_seed(0)
    width = 64
    matrices = [torch.randn(width, width) / width**0.5 for _ in range(5)]
    vectors = [torch.randn(width) / width**0.5 for _ in range(2)]
    regions = torch.nn.functional.normalize(torch.randn(5, 36, width), dim=-1)
    words = torch.nn.functional.normalize(torch.randn(7, 13, width), dim=-1)
    gradients = []
    for package in (kernel, ck):
        leaf = regions.clone().requires_grad_()
        scores = package.context_attention(leaf, words, package.ContextAttentionWeights(*matrices, *vectors), backend="cpu")
        gradients.append((scores.detach(), *torch.autograd.grad(scores.sum(), leaf)))
    assert all(map(torch.equal, *gradients))
    print(f"{metadata.id} works beside caan_kernels: the same bits, {len(found)} files, torch {torch.__version__}, {reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "kernel"))

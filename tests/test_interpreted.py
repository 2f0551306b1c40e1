"""The Triton backend in Triton's interpreter, on CPU tensors: the files that test it."""

import cases
import pytest
from other_processes import assert_passes

FILES = [
    *(f"context_attention/test_{name}.py" for name in ("accuracy", "triton", "interface", "invariance", "compile", "errors")),
    *(f"context_attention/test_{name}.py" for name in ("limits", "operators", "transforms", "warmup")),
    "max_similarity",
    "test_backends.py test_gpu_plan.py",
]


@pytest.mark.long
@pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="CPU tensors have another backend in this process")
@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file):
    # Where a row has no norm, NumPy warns of a division whose result nobody takes.
    assert_passes(file, {"TRITON_INTERPRET": "1"}, "-W", "ignore::RuntimeWarning")

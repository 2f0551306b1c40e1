"""The Triton backend in Triton's interpreter, on CPU tensors: the files that test it."""

import cases
import pytest
from other_processes import TOGETHER, assert_passes

PROCESSES = {
    "accuracy": ["context_attention/test_accuracy.py"],
    "triton": ["context_attention/test_triton.py"],
    "invariance": ["context_attention/test_invariance.py", "max_similarity"],
    "others": TOGETHER,
}


@pytest.mark.long
@pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="CPU tensors have another backend in this process")
@pytest.mark.parametrize("files", PROCESSES.values(), ids=PROCESSES)
def test_in_the_interpreter(files):
    # Where a row has no norm, NumPy warns of a division whose result nobody takes.
    assert_passes(files, {"TRITON_INTERPRET": "1"}, "-W", "ignore::RuntimeWarning")

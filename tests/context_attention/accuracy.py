"""Whether a backend is as accurate as it has to be."""

import cases
import torch


def assert_accurate(case, backend, options, *, score=2e-6, gradient=1e-5, of_reference=0.0, least=0.0):
    """Errors are within an absolute bound, or within a multiple of those of the reference in the same dtype.

    The bound of the scores is that of scores up to 1: an inner product of long vectors errs by more.
    """
    expected, expected_gradients = cases.oracle(case, **options)
    found, gradients = cases.run(case, **options, backend=backend)
    assert found.dtype == (torch.float64 if case.regions.dtype == torch.float64 else torch.float32)
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    plain, plain_gradients = cases.run(case, **options, backend="reference") if of_reference else (expected, expected_gradients)
    if of_reference:
        # Of few pairs the largest error says nothing.
        error, of_plain = (cases.spread_errors(x, expected)[0] for x in (found, plain))
    else:
        error, of_plain = cases.score_error(found, expected), 0.0
    assert error <= max(score * scale, of_reference * of_plain), "scores"
    for name, x in gradients.items():
        assert x.dtype == case.regions.dtype
        of_plain = cases.gradient_error(plain_gradients[name], expected_gradients[name], least)
        assert cases.gradient_error(x, expected_gradients[name], least) <= max(gradient, 1.5 * of_reference * of_plain), name
    cases.assert_inert(case, gradients)

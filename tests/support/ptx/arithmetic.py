"""What an instruction makes of its operands, where it touches no memory and no other thread: a table by its full name.

Where PTX promises an error bound and no result, the result is off by up to that bound, one way or the other as the operand's bits
have it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

F16, F32, F64 = np.float16, np.float32, np.float64


class Operation(NamedTuple):
    """A function of arrays, a number for each thread; types are PTX's."""

    function: Callable
    sources: tuple[str, ...]
    result: str


class Rounded(NamedTuple):
    """How far a result of the special-function unit may be off, relative to it."""

    exact: Callable
    bound: float

    def __call__(self, x):
        y = self.exact(x.astype(F64))
        return (y * (1 + self.bound * _noise(x))).astype(F32)


def _noise(x):
    """Within [-1, 1], of a number's own bits."""
    bits = np.ascontiguousarray(x).view(np.uint32) * np.uint32(2654435761)
    return (bits >> np.uint32(8)).astype(F64) * 2.0**-23 - 1


def _rough_tanh(x):
    # No unit gives more than 1.
    return np.clip(Rounded(np.tanh, 2.0**-11)(x), F32(-1), F32(1))


def bfloat(x):
    """float32 as the bits of the nearest bfloat16."""
    bits = np.ascontiguousarray(x, F32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def from_bfloat(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(F32)


def tf32(x):
    """float32 without the bits that a tensor core does not read."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(F32)


def _to_tf32(x):
    # To nearest, ties away from 0.
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(F32)


def _fused(a, b, c):
    # float64 holds the product exactly; that its sum is rounded twice shows once in 2^29 results.
    return a.astype(F64) * b.astype(F64) + c.astype(F64)


def _fused_down(a, b, c):
    exact = _fused(a, b, c)
    near = exact.astype(F32)
    return np.where(near > exact, np.nextafter(near, F32(-np.inf)), near)


def _flushed(function):
    def flush(x):
        return np.where(np.abs(x) < F32(2.0**-126), np.copysign(F32(0), x), x)

    return lambda *given: flush(function(*map(flush, given)))


def _shift(function, beyond):
    """Shifts by the width or more give what `beyond` says."""

    def shift(a, by):
        width = a.dtype.itemsize * 8
        if by.ndim == 0 and by < width:
            return function(a, by.astype(a.dtype))
        shifted = function(a, np.minimum(by, width - 1).astype(a.dtype))
        return np.where(by < width, shifted, beyond(a))

    return shift


def _sign(a):
    return a >> a.dtype.type(a.dtype.itemsize * 8 - 1)


def _quotient(a, b):
    """Towards 0."""
    if a.dtype.kind == "u":
        return a // b
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def _remainder(a, b):
    return a - _quotient(a, b) * b


def _wide(a, b):
    wider = {2: {"i": np.int32, "u": np.uint32}, 4: {"i": np.int64, "u": np.uint64}}[a.dtype.itemsize][a.dtype.kind]
    return a.astype(wider) * b.astype(wider)


def _high(a, b):
    bits = a.dtype.itemsize * 8
    # Numbers of Python's have no widest type.
    product = np.asarray(a).astype(object) * np.asarray(b).astype(object) if bits == 64 else _wide(a, b)
    return np.asarray(product >> bits).astype(a.dtype)


def _logic(a, b, c, table):
    result = np.zeros_like(a)
    for case in range(8):
        if int(table) >> case & 1:
            result |= (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
    return result


def _permute(a, b, selector):
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(a)
    for i in range(4):
        chosen = selector >> np.uint32(4 * i) & np.uint32(15)
        byte = both >> (np.uint64(8) * (chosen & np.uint32(7)).astype(np.uint64)) & np.uint64(255)
        spread = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        result |= np.where(chosen & np.uint32(8), spread, byte).astype(np.uint32) << np.uint32(8 * i)
    return result


def _funnel(left: bool, wraps: bool):
    def shift(low, high, by):
        by = (by & np.uint32(31) if wraps else np.minimum(by, np.uint32(32))).astype(np.uint64)
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        return (both << by >> np.uint64(32) if left else both >> by).astype(np.uint32)

    return shift


def _extract(a, position, length):
    """A field of bits, its highest one repeated where the type has a sign."""
    width = a.dtype.itemsize * 8
    position, length = (np.minimum(x & np.uint32(255), np.uint32(width)).astype(np.int64) for x in (position, length))
    wide = a.astype(np.int64)
    end = np.minimum(position + length, width)
    mask = (np.int64(1) << (end - position)) - 1
    bits = (wide >> np.minimum(position, 63)) & mask
    if a.dtype.kind == "i":
        highest = wide >> np.clip(end - 1, 0, width - 1) & 1
        bits = np.where((length > 0) & (highest == 1), bits | ~mask, bits)
    return bits.astype(a.dtype)


def _insert(a, b, position, length):
    width = np.uint32(a.dtype.itemsize * 8)
    position, length = (np.minimum(x & np.uint32(255), width).astype(a.dtype) for x in (position, length))
    one, whole = a.dtype.type(1), ~a.dtype.type(0)
    mask = np.where(length >= width, whole, (one << np.minimum(length, a.dtype.type(width - 1))) - one)
    mask = np.where(position >= width, a.dtype.type(0), mask << np.minimum(position, a.dtype.type(width - 1)))
    return (b & ~mask) | (a << np.minimum(position, a.dtype.type(width - 1)) & mask)


def _backwards(a):
    bits = np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(np.uint32).reshape(a.shape)


def _leading_zeros(a):
    # frexp's exponent is one more than the place of the highest bit.
    return np.where(a == 0, 32, 32 - np.frexp(a.astype(F64))[1]).astype(np.uint32)


def _to_integer(rounding, kind):
    limits = np.iinfo(kind)

    def convert(x):
        whole = np.nan_to_num(rounding(x.astype(F64)), nan=0.0)
        # The highest 64-bit numbers are none of float64's.
        inside = np.clip(whole, float(limits.min), np.nextafter(float(limits.max), 0) if limits.bits == 64 else float(limits.max))
        return inside.astype(kind)

    return convert


def _selected(a, b, predicate):
    return np.where(predicate, a, b)


def _moved(a):
    return a


INTEGERS = {f"{kind}{bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{bits // 8}") for kind in "su" for bits in (8, 16, 32, 64)}
WORDS = [name for name in INTEGERS if not name.endswith("8")]
BITS = ["b16", "b32", "b64"]
TABLE: dict[str, Operation] = {}


def _add(name: str, function: Callable, sources: str, result: str) -> None:
    TABLE[name] = Operation(function, tuple(sources.split()), result)


def _add_integers() -> None:
    two = {"add": np.add, "sub": np.subtract, "mul.lo": np.multiply, "div": _quotient, "rem": _remainder}
    two |= {"min": np.minimum, "max": np.maximum}
    for t in WORDS:
        for name, function in two.items():
            _add(f"{name}.{t}", function, f"{t} {t}", t)
        _add(f"mad.lo.{t}", lambda a, b, c: a * b + c, f"{t} {t} {t}", t)
        _add(f"shr.{t}", _shift(np.right_shift, _sign if t[0] == "s" else np.zeros_like), f"{t} u32", t)
        if not t.endswith("64"):
            wider = t[0] + str(2 * int(t[1:]))
            _add(f"mul.wide.{t}", _wide, f"{t} {t}", wider)
            _add(f"mad.wide.{t}", lambda a, b, c: _wide(a, b) + c, f"{t} {t} {wider}", wider)
        _add(f"mul.hi.{t}", _high, f"{t} {t}", t)
        if t[0] == "s":
            _add(f"neg.{t}", np.negative, t, t)
            _add(f"abs.{t}", np.abs, t, t)
        if not t.endswith("16"):
            _add(f"bfe.{t}", _extract, f"{t} u32 u32", t)
    for t in (*BITS, "pred"):
        logical = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not} if t == "pred" else {}
        bitwise = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
        for name, function in (logical or bitwise).items():
            _add(f"{name}.{t}", function, t if name == "not" else f"{t} {t}", t)
    for t in BITS:
        _add(f"shl.{t}", _shift(np.left_shift, np.zeros_like), f"{t} u32", t)
        _add(f"shr.{t}", _shift(np.right_shift, np.zeros_like), f"{t} u32", t)
    for t in ("b32", "b64"):
        _add(f"bfi.{t}", _insert, f"{t} {t} u32 u32", t)
    for side in "lr":
        for mode in ("wrap", "clamp"):
            _add(f"shf.{side}.{mode}.b32", _funnel(side == "l", mode == "wrap"), "b32 b32 u32", "b32")
    _add("lop3.b32", _logic, "b32 b32 b32 b32", "b32")
    _add("prmt.b32", _permute, "b32 b32 b32", "b32")
    _add("brev.b32", _backwards, "b32", "b32")
    _add("clz.b32", _leading_zeros, "b32", "u32")
    # The highest bit's place as a distance from the top.
    _add("bfind.shiftamt.u32", lambda a: np.where(a == 0, np.uint32(0xFFFFFFFF), _leading_zeros(a)), "u32", "u32")
    _add("popc.b32", lambda a: np.bitwise_count(a).astype(np.uint32), "b32", "u32")


def _add_moves_and_comparisons() -> None:
    ordered = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    unsigned = {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
    for t in (*WORDS, *BITS, "f16", "f32", "f64"):
        floating = t[0] == "f"
        for name, function in (ordered | (unsigned if t[0] == "u" else {})).items():
            if floating and name == "ne":
                _add(f"setp.ne.{t}", lambda a, b: (a < b) | (a > b), f"{t} {t}", "pred")
            elif t[0] != "b" or name in ("eq", "ne"):
                _add(f"setp.{name}.{t}", function, f"{t} {t}", "pred")
            if floating:
                opposite = {"eq": "ne", "ne": "eq", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[name]
                if name == "ne":
                    _add(f"setp.neu.{t}", np.not_equal, f"{t} {t}", "pred")
                elif name == "eq":
                    _add(f"setp.equ.{t}", lambda a, b: ~((a < b) | (a > b)), f"{t} {t}", "pred")
                else:
                    _add(f"setp.{name}u.{t}", lambda a, b, other=ordered[opposite]: ~other(a, b), f"{t} {t}", "pred")
        if floating:
            _add(f"setp.nan.{t}", lambda a, b: np.isnan(a) | np.isnan(b), f"{t} {t}", "pred")
            _add(f"setp.num.{t}", lambda a, b: ~(np.isnan(a) | np.isnan(b)), f"{t} {t}", "pred")
        _add(f"selp.{t}", _selected, f"{t} {t} pred", t)
        _add(f"mov.{t}", _moved, t, t)
    _add("mov.pred", _moved, "pred", "pred")
    _add("cvta.to.global.u64", _moved, "u64", "u64")
    _add("cvta.global.u64", _moved, "u64", "u64")


def _add_floats() -> None:
    two = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
    for t, kind in (("f32", F32), ("f64", F64), ("f16", F16), ("f16x2", F16)):
        for name, function in two.items():
            for suffix in ("", ".rn"):
                _add(f"{name}{suffix}.{t}", function, f"{t} {t}", t)
        _add(f"fma.rn.{t}", lambda a, b, c, kind=kind: _fused(a, b, c).astype(kind), f"{t} {t} {t}", t)
        _add(f"max.{t}", np.fmax, f"{t} {t}", t)
        _add(f"min.{t}", np.fmin, f"{t} {t}", t)
        _add(f"max.NaN.{t}", np.maximum, f"{t} {t}", t)
        _add(f"min.NaN.{t}", np.minimum, f"{t} {t}", t)
        _add(f"neg.{t}", np.negative, t, t)
        _add(f"abs.{t}", np.abs, t, t)
    _add("fma.rm.f32", _fused_down, "f32 f32 f32", "f32")
    _add("copysign.f32", lambda sign, size: np.copysign(size, sign), "f32 f32", "f32")
    _add("sqrt.rn.f32", np.sqrt, "f32", "f32")
    _add("rcp.rn.f32", np.reciprocal, "f32", "f32")
    special = {
        "tanh.approx": _rough_tanh,
        "ex2.approx": Rounded(np.exp2, 2.0**-22),
        "rcp.approx": Rounded(lambda x: 1 / x, 2.0**-23),
        "rsqrt.approx": Rounded(lambda x: 1 / np.sqrt(x), 2.0**-22.9),
        "sqrt.approx": Rounded(np.sqrt, 2.0**-23),
        "lg2.approx": Rounded(np.log2, 2.0**-22),
    }
    for name, function in special.items():
        _add(f"{name}.f32", function, "f32", "f32")
        _add(f"{name}.ftz.f32", _flushed(function), "f32", "f32")
    quotient = Rounded(lambda x: x, 2.0**-22)
    for name in ("div.approx.f32", "div.full.f32"):
        _add(name, lambda a, b: quotient(a / b), "f32 f32", "f32")
    _add("tanh.approx.f16x2", lambda x: _rough_tanh(x.astype(F32)).astype(F16), "f16x2", "f16x2")
    _add("tanh.approx.f16", lambda x: _rough_tanh(x.astype(F32)).astype(F16), "f16", "f16")


def _add_conversions() -> None:
    for target, kind in INTEGERS.items():
        for source in INTEGERS:
            _add(f"cvt.{target}.{source}", lambda x, kind=kind: x.astype(kind), source, target)
        for source in ("f32", "f64"):
            for mode, rounding in {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}.items():
                _add(f"cvt.{mode}.{target}.{source}", _to_integer(rounding, kind), source, target)
    for source in INTEGERS:
        for target, kind in (("f32", F32), ("f64", F64), ("f16", F16)):
            _add(f"cvt.rn.{target}.{source}", lambda x, kind=kind: x.astype(kind), source, target)
    for mode, rounding in {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}.items():
        _add(f"cvt.{mode}.f32.f32", rounding, "f32", "f32")
    _add("cvt.sat.f32.f32", lambda x: np.clip(np.nan_to_num(x, nan=0.0, posinf=np.inf), F32(0), F32(1)), "f32", "f32")
    _add("cvt.f64.f32", lambda x: x.astype(F64), "f32", "f64")
    _add("cvt.rn.f32.f64", lambda x: x.astype(F32), "f64", "f32")
    _add("cvt.f32.f16", lambda x: x.astype(F32), "f16", "f32")
    _add("cvt.rn.f16.f32", lambda x: x.astype(F16), "f32", "f16")
    _add("cvt.f32.bf16", from_bfloat, "bf16", "f32")
    _add("cvt.rn.bf16.f32", bfloat, "f32", "bf16")
    _add("cvt.rna.tf32.f32", _to_tf32, "f32", "f32")
    # The first operand goes to the upper half.
    _add("cvt.rn.bf16x2.f32", lambda a, b: _paired(bfloat(b), bfloat(a)), "f32 f32", "b32")
    _add("cvt.rn.f16x2.f32", lambda a, b: _paired(b.astype(F16), a.astype(F16)), "f32 f32", "b32")


def _paired(low, high):
    low, high = (np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) for x in (low, high))
    return low | high << np.uint32(16)


_add_integers()
_add_moves_and_comparisons()
_add_floats()
_add_conversions()

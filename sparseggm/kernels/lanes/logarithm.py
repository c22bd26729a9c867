"""The natural logarithm as straight-line code, which vectorises; the C library's takes one number a call."""

import numpy as np

from sparseggm.kernels import KERNEL, njit

_ROOT_HALF = np.int64(0x3FE6A09E667F3BCD)  # bits of √½
_ONE = np.int64(0x3FF0000000000000)  # bits of 1
_MANTISSA = np.int64(0x000FFFFFFFFFFFFF)
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # its last 21 bits are zero: k · this is exact
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_TINY = float(np.finfo(np.float64).tiny)


@njit(**KERNEL)
def logarithms(x):
    """Overwrite each x, normal or subnormal and positive, with log x; error below one unit in the last place.

    x = 2ᵏ (1 + f) with √½ ≤ 1 + f < √2. With s = f / (2 + f), log(1 + f) = 2 artanh s = 2s + s Σ 2 s²ⁱ / (2i + 1), and
    2s = f − f²/2 + s f²/2, so that f, which is exact, carries the leading digits.
    """
    for i in range(x.shape[0]):
        scale = 18014398509481984.0 if x[i] < _TINY else 1.0  # 2⁵⁴
        shift = 54.0 if x[i] < _TINY else 0.0
        bits = np.float64(x[i] * scale).view(np.int64) + (_ONE - _ROOT_HALF)
        k = np.float64((bits >> 52) - 1023) - shift
        f = np.int64((bits & _MANTISSA) + _ROOT_HALF).view(np.float64) - 1.0
        s = f / (2.0 + f)
        z = s * s
        R = 2.0 / 21.0
        R = z * R + 2.0 / 19.0
        R = z * R + 2.0 / 17.0
        R = z * R + 2.0 / 15.0
        R = z * R + 2.0 / 13.0
        R = z * R + 2.0 / 11.0
        R = z * R + 2.0 / 9.0
        R = z * R + 2.0 / 7.0
        R = z * R + 2.0 / 5.0
        R = z * R + 2.0 / 3.0
        half = 0.5 * f * f
        x[i] = k * _LN2_HIGH - ((half - (s * (half + z * R) + k * _LN2_LOW)) - f)

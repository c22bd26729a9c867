"""The normal distribution on vectors of float64: logarithms of tails, and truncated quantiles.

Straight-line arithmetic on the values of `vector`, so that lanes go together: no call of a library, and no NaN however
far out. Errors are those that the tests find against 50 digits.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic, overload

from sparseggm.kernels import INNER, njit
from sparseggm.kernels.lanes.vector import Lanes, exponent, mantissa, minimum, square_root

LARGEST = 1e15
"""Bounds farther out are moved there: their squares, and log-masses in float32, stay finite."""

_LOG2, _LOG2PI = math.log(2.0), math.log(2.0 * math.pi)
_LOG2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # its last 21 bits are zero: k · this is exact
_LOG2_LOW = float.fromhex("0x1.a39ef35793c76p-33")

# Coefficients in y = 2t − 1 of log erfc(z) + z² − log t − log 2, t = 2 / (2 + z), 0 < t ≤ 1: the interpolant of degree
# 27 in Chebyshev's nodes, computed in 50 digits; it is off by 1e-17.
_TAIL = np.array(
    [
        -1.3649412646166377,
        0.6726432239776567,
        0.04734330684190443,
        -0.0468956102311753,
        -0.009872689366389959,
        0.008824938557060623,
        0.001758933557799016,
        -0.002345812500482853,
        -0.00014624686337800336,
        0.000673678795580235,
        -9.37350311709817e-05,
        -0.0001743029472030762,
        7.14010141275703e-05,
        3.174517974943743e-05,
        -3.0187884551394243e-05,
        1.377266413445813e-07,
        8.562623420121284e-06,
        -2.947986876998146e-06,
        -1.2723119048688712e-06,
        1.250027661256835e-06,
        -1.6849800720652747e-07,
        -2.495832761718488e-07,
        1.5334345920907584e-07,
        1.4448658045614183e-09,
        -3.917182051026888e-08,
        1.1172352263643879e-08,
        4.060882146969124e-09,
        -1.890230600897254e-09,
    ]
)


# ---------------------------------------------------------------------- meaning, and instructions


def nearest(value):
    """The nearest integer to each lane, as a number."""
    return np.rint(value)


def power_of_two(k):
    """2ᵏ for each lane, an integer of −1022 … 1023."""
    return np.ldexp(1.0, np.asarray(k, np.int64))[()]


def where_positive(condition, value, other):
    """The value in lanes where the condition is > 0, the other elsewhere, NaN included."""
    return np.where(condition > 0, value, other)[()]


@intrinsic
def _nearest(context, value):
    def codegen(context, builder, signature, arguments):
        kind = context.get_value_type(signature.args[0])
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"llvm.rint.v{value.count}f64"
        )
        return builder.call(function, arguments)

    return value(value), codegen


@intrinsic
def _power_of_two(context, k):
    def codegen(context, builder, signature, arguments):
        vector = ir.VectorType(ir.IntType(64), k.count)
        biased = builder.fadd(arguments[0], ir.Constant(arguments[0].type, [2.0**52 + 1023.0] * k.count))
        bits = builder.shl(builder.bitcast(biased, vector), ir.Constant(vector, [52] * k.count))
        return builder.bitcast(bits, arguments[0].type)

    return k(k), codegen


@intrinsic
def _where_positive(context, condition, value, other):
    def codegen(context, builder, signature, arguments):
        test, *values = arguments
        zero = ir.Constant(test.type, [0.0] * condition.count)
        return builder.select(builder.fcmp_ordered(">", test, zero), *values)

    return value(condition, value, value), codegen


@overload(nearest)
def _overload_nearest(value):
    return (lambda value: _nearest(value)) if isinstance(value, Lanes) else None


@overload(power_of_two)
def _overload_power_of_two(k):
    return (lambda k: _power_of_two(k)) if isinstance(k, Lanes) else None


@overload(where_positive)
def _overload_where_positive(condition, value, other):
    return (
        (lambda condition, value, other: _where_positive(condition, value, other)) if isinstance(value, Lanes) else None
    )


# ---------------------------------------------------------------------- elementary functions


@njit(**INNER)
def exp_and_expm1(x):
    """eˣ and eˣ − 1 of each lane, x ≤ 700; 0 and −1 below −708.

    x = k log 2 + r with |r| ≤ ½ log 2, and the Taylor polynomial of eʳ − 1.
    """
    inside, zero = x + 708.0, x * 0.0
    x = where_positive(inside, x, zero)
    k = nearest(x * (1.0 / _LOG2))
    r = (x - k * _LOG2_HIGH) - k * _LOG2_LOW
    total = r * (1.0 / 6227020800.0) + (1.0 / 479001600.0)
    total = total * r + (1.0 / 39916800.0)
    total = total * r + (1.0 / 3628800.0)
    total = total * r + (1.0 / 362880.0)
    total = total * r + (1.0 / 40320.0)
    total = total * r + (1.0 / 5040.0)
    total = total * r + (1.0 / 720.0)
    total = total * r + (1.0 / 120.0)
    total = total * r + (1.0 / 24.0)
    total = total * r + (1.0 / 6.0)
    total = total * r + 0.5
    total = (total * r) * r + r
    scale = power_of_two(k)
    difference = scale * total + (scale - 1.0)
    return where_positive(inside, scale + scale * total, zero), where_positive(inside, difference, zero - 1.0)


@njit(**INNER)
def exp(x):
    """eˣ of each lane, x ≤ 700; 0 below −708."""
    return exp_and_expm1(x)[0]


@njit(**INNER)
def log(x):
    """log x of each lane, positive and normal; as `logarithm.logarithms`."""
    k, m = exponent(x), mantissa(x)
    above = m - math.sqrt(2.0)
    k, m = where_positive(above, k + 1.0, k), where_positive(above, m * 0.5, m)
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    R = z * (2.0 / 21.0) + (2.0 / 19.0)
    R = z * R + (2.0 / 17.0)
    R = z * R + (2.0 / 15.0)
    R = z * R + (2.0 / 13.0)
    R = z * R + (2.0 / 11.0)
    R = z * R + (2.0 / 9.0)
    R = z * R + (2.0 / 7.0)
    R = z * R + (2.0 / 5.0)
    R = z * R + (2.0 / 3.0)
    half = (f * f) * 0.5
    return k * _LOG2_HIGH - ((half - (s * (half + z * R) + k * _LOG2_LOW)) - f)


@njit(**INNER)
def log1p(x):
    """log(1 + x) of each lane, −1 < x < 1: the logarithm of the rounded sum, and a correction for its rounding."""
    total = x + 1.0
    return log(total) + (x - (total - 1.0)) / total


# ---------------------------------------------------------------------- tails


@njit(**INNER)
def scaled_log_tail(x):
    """log Φ(x) + x²/2 of each lane, x ≤ 0.

    Φ(x) = ½ erfc(z) for z = −x / √2, and log erfc(z) + z² − log t is a smooth function of t = 2 / (2 + z).
    """
    two = x * 0.0 + 2.0
    t = two / (two - x * math.sqrt(0.5))
    y = t * 2.0 - 1.0
    square = y * y
    fourth = square * square
    even, odd, even_2, odd_2 = (
        x * 0.0,
        x * 0.0,
        x * 0.0,
        x * 0.0,
    )  # four sums at a time: one alone would wait for itself
    for k in range(len(_TAIL) - 4, -1, -4):
        even, odd = even * fourth + _TAIL[k], odd * fourth + _TAIL[k + 1]
        even_2, odd_2 = even_2 * fourth + _TAIL[k + 2], odd_2 * fourth + _TAIL[k + 3]
    return ((even + even_2 * square) + (odd + odd_2 * square) * y) + log(t)


@njit(**INNER)
def tail_quantile(log_probability):
    """x ≤ 0 of each lane with log Φ(x) as given, at most log ½.

    From [Abramowitz & Stegun 1964, 26.2.23], 4.5e-4 off, by two steps of Halley on log Φ: each triples the digits.
    """
    r = square_root(log_probability * -2.0)
    x = ((r * 0.010328 + 0.802853) * r + 2.515517) / (((r * 0.001308 + 0.189269) * r + 1.432788) * r + 1.0) - r
    for _ in range(2):
        x = minimum(x, x * 0.0)
        scaled = scaled_log_tail(x)
        rate = exp(scaled * -1.0 - 0.5 * _LOG2PI)  # φ / Φ
        step = (scaled - (x * x) * 0.5 - log_probability) / rate
        x = x - step / (step * (x + rate) * 0.5 + 1.0)
    return minimum(x, x * 0.0)


@njit(**INNER)
def truncated(alpha, beta, width, u):
    """Of a standard normal between α < β: ℓ = log(Φ(β) − Φ(α)), its quantile e at 0 < u < 1, φ(α)/e^ℓ and φ(β)/e^ℓ.

    The width β − α may be known better than by its ends. The interval is mirrored to have its centre at most at zero;
    where it is narrow ℓ is a series about the centre.
    """
    one = u * 0.0 + 1.0
    alpha = minimum(alpha, one * LARGEST)
    alpha = minimum(alpha * -1.0, one * LARGEST) * -1.0
    beta = minimum(beta, one * LARGEST)
    beta = minimum(beta * -1.0, one * LARGEST) * -1.0
    mirrored = alpha + beta
    a, b = where_positive(mirrored, beta * -1.0, alpha), where_positive(mirrored, alpha * -1.0, beta)
    v, centre = where_positive(mirrored, one - u, u), (a + b) * 0.5
    # Ends within that rounded to one number have the width that is known. Ends that were moved to one place have none:
    # then the mass is that of the tail, and constant.
    wide = where_positive(b - a, b - a, where_positive(b + one * LARGEST, width, one * 0.0))
    width = where_positive(wide, minimum(width, one * (2.0 * LARGEST)), one)

    below = where_positive(b, b * -1.0, b)
    scaled_a, scaled_b = scaled_log_tail(a), scaled_log_tail(below)
    log_tail = scaled_b - (b * b) * 0.5  # log Φ(−|b|)
    beyond = exp(log_tail)
    log_b = where_positive(b, log1p(beyond * -1.0), log_tail)  # log Φ(b)
    # log Φ(a) / Φ(b), where both are tails without the difference of their squares
    d = where_positive(b, (scaled_a - (a * a) * 0.5) - log_b, (scaled_a - scaled_b) + (b - a) * (b + a) * 0.5)
    rest, share = exp_and_expm1(d)  # of Φ(b): Φ(a), and −(Φ(b) − Φ(a))
    share = where_positive(wide, share * -1.0, one)

    narrow = one * 1e-2 - width * (one - centre)
    squares = width * width
    series = squares * ((centre * centre - 1.0) * (1.0 / 24.0))
    series = series + (squares * squares) * (((centre * centre - 6.0) * (centre * centre) + 3.0) * (1.0 / 1920.0))
    log_series = ((series * (1.0 / 3.0) - 0.5) * series + 1.0) * series
    size = log(where_positive(narrow, width, share))
    at_centre = (centre * centre) * -0.5 - 0.5 * _LOG2PI + log_series
    mass = size + where_positive(narrow, at_centre, log_b)

    rate = where_positive(b, (b * b) * -0.5 - log_b, scaled_b * -1.0) - 0.5 * _LOG2PI  # log φ(b) / Φ(b)
    rate = exp(where_positive(narrow, (centre - b) * (centre + b) * 0.5, rate))
    rate_b = where_positive(wide, rate / where_positive(narrow, width * (series + 1.0), share), one * 0.0)
    rate_a = rate_b * exp((b - a) * (b + a) * 0.5)

    of_b = rest + v * share  # Φ(e) / Φ(b)
    right = where_positive(b, (one - beyond) * of_b - 0.5, b)  # e > 0
    tail = where_positive(right, beyond + (one - v) * (share * (one - beyond)), of_b)
    x = tail_quantile(log(tail) + where_positive(right, one * 0.0, log_b))
    e = minimum(where_positive(right, x * -1.0, x), b)
    e = minimum(e * -1.0, a * -1.0) * -1.0
    return (
        mass,
        where_positive(mirrored, e * -1.0, e),
        where_positive(mirrored, rate_b, rate_a),
        where_positive(mirrored, rate_a, rate_b),
    )

"""Vectors of batch elements: with them, one line of a kernel serves one matrix or as many as a register has lanes.

A *block* is C-contiguous scratch of shape (k, lanes), the transpose of `lanes` rows of a batch; each of its rows fills
a vector register. `load(block, i)` gives row i as a value with arithmetic; of a 1-D array it gives the number at i.
So a kernel written once works on blocks, on single matrices, and on a single matrix against a block of vectors.

Each function here is written in plain NumPy, which defines it; where Numba compiles it, LLVM vector instructions take
its place. Every operation rounds once, as the scalar one does: lanes do not change results.

The module is longer than others, because it defines each function twice: by its meaning and by its instructions.
"""

from __future__ import annotations

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

REGISTER_BYTES = 64


# ---------------------------------------------------------------------- meaning


def lanes_of(array):
    """Lanes of a block of the array's dtype: 16 of float32, 8 of float64."""
    return REGISTER_BYTES // array.itemsize


def load(block, i):
    """Row i of a block, element i of a 1-D array."""
    return np.array(block[i]) if block.ndim == 2 else block[i]


def store(block, i, value):
    """Overwrite row or element i."""
    block[i] = value


def full_like(block, number):
    """A number as a value of the block's kind and dtype."""
    return np.full(block.shape[1:], number, block.dtype)[()]


def square_root(value):
    """√ of each lane."""
    return np.sqrt(value)


def zero_below(value, threshold):
    """The value, with 0 in lanes where |value| < threshold."""
    return np.where(abs(value) < threshold, value.dtype.type(0), value)[()]


def minimum(value, other):
    """The lesser of the two in each lane; where either is NaN, `other`."""
    return np.where(value < other, value, other)[()]


def with_sign(value, other):
    """|value| with the sign of `other`, in each lane."""
    return np.copysign(value, other)


def exponent(value):
    """k of each lane 2ᵏ m, 1 ≤ m < 2, as a number; lanes are normal positive float64 numbers."""
    return np.frexp(value)[1] - 1.0


def mantissa(value):
    """m of each lane 2ᵏ m, 1 ≤ m < 2; lanes as for `exponent`."""
    return 2.0 * np.frexp(value)[0]


def not_positive(value):
    """The number of lanes outside (0, ∞); NaN is outside."""
    return int(np.count_nonzero(~((value > 0) & (value < np.inf))))


def not_finite(value):
    """The number of lanes that are NaN or infinite."""
    return int(np.count_nonzero(~(abs(value) < np.inf)))


def as_float64(value):
    """The value in float64, with as many lanes."""
    return np.asarray(value, np.float64)[()]


def store_run(array, offset, value):
    """array[offset : offset + lanes] = value, for a 1-D array of the value's dtype."""
    array[offset : offset + value.size] = value


# ---------------------------------------------------------------------- the type of a vector


class Lanes(types.Type):
    """Numba's type of a vector: one row of a block."""

    def __init__(self, dtype, count=None):
        self.dtype = dtype
        self.count = count or 8 * REGISTER_BYTES // dtype.bitwidth
        super().__init__(f"Lanes({dtype}, {self.count})")


def vector_of(dtype, count):
    """The LLVM type of `count` numbers."""
    return ir.VectorType(ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType(), count)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, vector_of(kind.dtype, kind.count))


def _value_type(array):
    """The type that `load` returns for an array type."""
    return Lanes(array.dtype) if array.ndim == 2 else array.dtype


def _splat(builder, vector, scalar):
    """A scalar in every lane."""
    zero = ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, zero)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)


def _overload_arithmetic(function, instruction):
    """Vector ∘ vector, vector ∘ scalar and scalar ∘ vector, all of one dtype."""

    @intrinsic
    def compute(context, a, b):
        result = a if isinstance(a, Lanes) else b

        def codegen(context, builder, signature, arguments):
            vector = context.get_value_type(result)
            wide = [
                argument if isinstance(kind, Lanes) else _splat(builder, vector, argument)
                for kind, argument in zip(signature.args, arguments, strict=True)
            ]
            return getattr(builder, instruction)(*wide)

        return result(a, b), codegen

    @overload(function)
    def choose(a, b):
        kinds = {a.dtype if isinstance(a, Lanes) else a, b.dtype if isinstance(b, Lanes) else b}
        if (isinstance(a, Lanes) or isinstance(b, Lanes)) and len(kinds) == 1:
            return lambda a, b: compute(a, b)
        return None


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _overload_arithmetic(_function, _instruction)


# ---------------------------------------------------------------------- memory


def pointer_to(context, builder, kind, array, index, vector=None):
    """Pointer to element `index` of a C-contiguous array; with `vector`, as a pointer to that type."""
    pointer = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
    return pointer if vector is None else builder.bitcast(pointer, vector.as_pointer())


def pointer_to_row(context, builder, kind, array, i):
    """Pointer to row i of a block, or to element i of a 1-D array."""
    value = _value_type(kind)
    if not isinstance(value, Lanes):
        return pointer_to(context, builder, kind, array, i)
    index = builder.mul(i, ir.Constant(i.type, value.count))
    return pointer_to(context, builder, kind, array, index, context.get_value_type(value))


def aligned(instruction, kind):
    """Give a load or store the alignment of one element, the only alignment that is known."""
    instruction.align = kind.dtype.bitwidth // 8
    return instruction


@intrinsic
def _load(context, block, i):
    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        return aligned(builder.load(pointer_to_row(context, builder, kind, *arguments)), kind)

    return _value_type(block)(block, types.intp), codegen


@intrinsic
def _store(context, block, i, value):
    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        array, row, stored = arguments
        aligned(builder.store(stored, pointer_to_row(context, builder, kind, array, row)), kind)
        return context.get_dummy_value()

    return types.void(block, types.intp, _value_type(block)), codegen


@intrinsic
def _full_like(context, block, number):
    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        scalar = context.cast(builder, arguments[1], types.float64, kind.dtype)
        return scalar if kind.ndim == 1 else _splat(builder, context.get_value_type(_value_type(kind)), scalar)

    return _value_type(block)(block, types.float64), codegen


@overload(load)
def _overload_load(block, i):
    return (lambda block, i: _load(block, i)) if isinstance(block, types.Array) else None  # else see `tiles`


@overload(store)
def _overload_store(block, i, value):
    return (lambda block, i, value: _store(block, i, value)) if isinstance(block, types.Array) else None


@overload(full_like)
def _overload_full_like(block, number):
    return lambda block, number: _full_like(block, number)


@overload(lanes_of)
def _overload_lanes_of(array):
    lanes = Lanes(array.dtype).count
    return lambda array: lanes


# ---------------------------------------------------------------------- one function of a value


def _llvm(builder, name, *arguments):
    """Call an LLVM intrinsic such as llvm.sqrt on values of one type."""
    kind = arguments[0].type
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    suffix = "f32" if isinstance(element, ir.FloatType) else "f64"
    suffix = f"v{kind.count}{suffix}" if isinstance(kind, ir.VectorType) else suffix
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}"), arguments)


def _filled_like(value, number):
    """A constant of the type of an LLVM value."""
    kind = value.type
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def _count(builder, condition):
    """The number of lanes in which a condition holds, as int64."""
    word = ir.IntType(64)
    if not isinstance(condition.type, ir.VectorType):
        return builder.zext(condition, word)
    bits = builder.bitcast(condition, ir.IntType(condition.type.count))
    return builder.ctpop(builder.zext(bits, word))


def _emit_exponent(builder, value):
    bits = builder.lshr(_bits_of(builder, value), _filled_bits(value, 52))
    biased = builder.or_(bits, _filled_bits(value, 0x4330000000000000))  # 2⁵² + the exponent's bits
    return builder.fsub(builder.bitcast(biased, value.type), _filled_like(value, 2.0**52 + 1023.0))


def _emit_mantissa(builder, value):
    fraction = builder.and_(_bits_of(builder, value), _filled_bits(value, 0x000FFFFFFFFFFFFF))
    return builder.bitcast(builder.or_(fraction, _filled_bits(value, 0x3FF0000000000000)), value.type)


def _bits_of(builder, value):
    """The bits of a vector of float64 numbers."""
    return builder.bitcast(value, ir.VectorType(ir.IntType(64), value.type.count))


def _filled_bits(value, bits):
    """The same 64 bits for every lane of an LLVM value."""
    return ir.Constant(ir.VectorType(ir.IntType(64), value.type.count), [bits] * value.type.count)


def _emit_square_root(builder, value):
    return _llvm(builder, "sqrt", value)


def _emit_not_positive(builder, value):
    above = builder.fcmp_ordered(">", value, _filled_like(value, 0.0))
    below = builder.fcmp_ordered("<", value, _filled_like(value, float("inf")))
    return _count(builder, builder.not_(builder.and_(above, below)))


def _emit_not_finite(builder, value):
    size = _llvm(builder, "fabs", value)
    return _count(builder, builder.not_(builder.fcmp_ordered("<", size, _filled_like(value, float("inf")))))


def _overload_of_one(function, emit, result=None):
    """Overload a function of one value; its result has the type of the value unless `result` is given."""

    @intrinsic
    def compute(context, value):
        def codegen(context, builder, signature, arguments):
            return emit(builder, *arguments)

        return (result or value)(value), codegen

    @overload(function)
    def choose(value):
        return lambda value: compute(value)


_overload_of_one(square_root, _emit_square_root)
_overload_of_one(exponent, _emit_exponent)
_overload_of_one(mantissa, _emit_mantissa)
_overload_of_one(not_positive, _emit_not_positive, types.int64)
_overload_of_one(not_finite, _emit_not_finite, types.int64)


@intrinsic
def _zero_below(context, value, threshold):
    def codegen(context, builder, signature, arguments):
        value, threshold = arguments
        small = builder.fcmp_ordered("<", _llvm(builder, "fabs", value), threshold)
        return builder.select(small, _filled_like(value, 0.0), value)

    return value(value, value), codegen


@overload(zero_below)
def _overload_zero_below(value, threshold):
    return lambda value, threshold: _zero_below(value, threshold)


@intrinsic
def _minimum(context, value, other):
    def codegen(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered("<", *arguments), *arguments)

    return value(value, value), codegen


@overload(minimum)
def _overload_minimum(value, other):
    return lambda value, other: _minimum(value, other)


@intrinsic
def _with_sign(context, value, other):
    return value(value, value), lambda context, builder, signature, arguments: _llvm(builder, "copysign", *arguments)


@overload(with_sign)
def _overload_with_sign(value, other):
    return lambda value, other: _with_sign(value, other)


@intrinsic
def _as_float64(context, value):
    result = Lanes(types.float64, value.count)

    def codegen(context, builder, signature, arguments):
        wide = context.get_value_type(result)
        return arguments[0] if arguments[0].type == wide else builder.fpext(arguments[0], wide)

    return result(value), codegen


@intrinsic
def _store_run(context, array, offset, value):
    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        memory, first, stored = arguments
        aligned(builder.store(stored, pointer_to(context, builder, kind, memory, first, stored.type)), kind)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@overload(as_float64)
def _overload_as_float64(value):
    return lambda value: _as_float64(value)


@overload(store_run)
def _overload_store_run(array, offset, value):
    return lambda array, offset, value: _store_run(array, offset, value)

"""Moving squares of numbers between the rows of a batch and a block of lanes, transposed in registers: see `vector`.

A *tile* is `lanes` numbers of each of `lanes` rows. As in `vector`, each function is written in plain NumPy, which
defines it; where Numba compiles it, LLVM instructions take its place. Rows stand `stride` elements apart in a 1-D
array; there are `count` of them, and unused lanes repeat the last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from sparseggm.kernels.lanes.vector import Lanes, aligned, load, pointer_to, pointer_to_row, store, vector_of

# ---------------------------------------------------------------------- meaning


def gather_tile(array, first, stride, count, block, at):
    """block[at + i, lane] = array[first + row · stride + i] for i < lanes, row = min(lane, count − 1)."""
    lanes = block.shape[1]
    block[at : at + lanes] = array[_places(first, stride, count, lanes)]


def scatter_tile(block, at, array, first, stride, count):
    """array[first + lane · stride + i] = block[at + i, lane] for i < lanes and lane < count, in the array's dtype."""
    lanes = block.shape[1]
    array[_places(first, stride, count, lanes)[:, :count]] = block[at : at + lanes, :count]


def stream_tile(block, at, array, first, stride, count):
    """`scatter_tile` past the caches, of one dtype, to whole lines: element 0 of each row begins a line of memory.

    Another thread sees the numbers once both threads have met at a lock, as all do at the end of a call.
    """
    scatter_tile(block, at, array, first, stride, count)


def prefetch(array, i):
    """Announce that element i of a 1-D array will be read soon; i may lie outside the array."""


class Streamed(NamedTuple):
    """A block, and the rows of a 1-D array that will be gathered into it next: see `streamed`."""

    block: Any
    array: Any
    first: Any
    stride: Any


def streamed(block, array, first, stride):
    """The block, of which each `load` also prefetches a line of the rows that will be gathered into it next.

    The next rows are array[first + lane · stride :]. With one line a load, reading them overlaps with computing on the
    block; prefetching all at once would serialise the two. So load each row of the block once through the stream; a
    second load of a row goes through `block_of`. A 1-D array, into which nothing is gathered, is returned as it is.
    """
    return block


def block_of(block):
    """The block of a stream; a block or a 1-D array itself."""
    return block


def _places(first, stride, count, lanes):
    return first + np.arange(lanes)[:, None] + stride * np.minimum(np.arange(lanes), count - 1)


# ---------------------------------------------------------------------- instructions


def _transposed(builder, rows):
    """The transpose of a square of registers: log₂ lanes rounds, each swaps off-diagonal blocks [Eklundh 1972]."""
    lanes, half = len(rows), len(rows) // 2
    index = ir.VectorType(ir.IntType(32), lanes)
    while half:
        upper = ir.Constant(index, [k if not k & half else lanes + k - half for k in range(lanes)])
        lower = ir.Constant(index, [k + half if not k & half else lanes + k for k in range(lanes)])
        for i in range(lanes):
            if not i & half:
                a, b = rows[i], rows[i + half]
                rows[i], rows[i + half] = builder.shuffle_vector(a, b, upper), builder.shuffle_vector(a, b, lower)
        half //= 2
    return rows


def _pointers_to_rows(context, builder, kind, array, first, stride, count, vector):
    """To the run of each lane in a 1-D array."""
    last = builder.sub(count, ir.Constant(count.type, 1))
    for lane in (ir.Constant(stride.type, lane) for lane in range(vector.count)):
        row = builder.select(builder.icmp_signed("<", lane, last), lane, last)
        yield pointer_to(context, builder, kind, array, builder.add(first, builder.mul(stride, row)), vector)


def _pointers_into_block(context, builder, kind, block, at, vector):
    """To as many successive rows of a block as it has lanes."""
    for i in range(vector.count):
        yield pointer_to_row(context, builder, kind, block, builder.add(at, ir.Constant(at.type, i)))


@intrinsic
def _gather_tile(context, array, first, stride, count, block, at):
    def codegen(context, builder, signature, arguments):
        source, target = signature.args[0], signature.args[4]
        *rows_of_array, into, position = arguments
        read = vector_of(source.dtype, Lanes(target.dtype).count)
        write = vector_of(target.dtype, read.count)
        rows = [
            aligned(builder.load(pointer), source)
            for pointer in _pointers_to_rows(context, builder, source, *rows_of_array, read)
        ]
        rows = _transposed(builder, [row if read == write else builder.fpext(row, write) for row in rows])
        targets = _pointers_into_block(context, builder, target, into, position, write)
        for value, pointer in zip(rows, targets, strict=True):
            aligned(builder.store(value, pointer), target)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, block, types.intp), codegen


def _scattered(past_caches):
    """The intrinsic of `scatter_tile` or `stream_tile`."""

    @intrinsic
    def compute(context, block, at, array, first, stride, count):
        def codegen(context, builder, signature, arguments):
            source, target = signature.args[0], signature.args[2]
            from_block, position, *rows_of_array = arguments
            read = vector_of(source.dtype, Lanes(source.dtype).count)
            write = vector_of(target.dtype, read.count)
            pointers = _pointers_into_block(context, builder, source, from_block, position, read)
            rows = _transposed(builder, [aligned(builder.load(pointer), source) for pointer in pointers])
            targets = _pointers_to_rows(context, builder, target, *rows_of_array, write)
            # From the last lane to the first: unused lanes write to the last row too, and its own lane overwrites them.
            for value, pointer in reversed(list(zip(rows, targets, strict=True))):
                stored = builder.store(value if read == write else builder.fptrunc(value, write), pointer)
                aligned(stored, target)
                if past_caches:
                    stored.align = write.count * target.dtype.bitwidth // 8
                    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            return context.get_dummy_value()

        return types.void(block, types.intp, array, types.intp, types.intp, types.intp), codegen

    return compute


_scatter_tile, _stream_tile = _scattered(False), _scattered(True)


@intrinsic
def _prefetch(context, array, i):
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    how = [ir.Constant(number, word) for word in (0, 2, 1)]  # to read; into the second cache; data

    def codegen(context, builder, signature, arguments):
        pointer = builder.bitcast(pointer_to(context, builder, signature.args[0], *arguments), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8"), [pointer, *how])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@overload(gather_tile)
def _overload_gather_tile(array, first, stride, count, block, at):
    return lambda array, first, stride, count, block, at: _gather_tile(array, first, stride, count, block, at)


@overload(scatter_tile)
def _overload_scatter_tile(block, at, array, first, stride, count):
    return lambda block, at, array, first, stride, count: _scatter_tile(block, at, array, first, stride, count)


@overload(stream_tile)
def _overload_stream_tile(block, at, array, first, stride, count):
    return lambda block, at, array, first, stride, count: _stream_tile(block, at, array, first, stride, count)


@overload(prefetch)
def _overload_prefetch(array, i):
    return lambda array, i: _prefetch(array, i)


# ---------------------------------------------------------------------- streams


def _is_streamed(block):
    return isinstance(block, types.NamedTuple) and block.instance_class is Streamed


@overload(streamed)
def _overload_streamed(block, array, first, stride):
    if block.ndim == 1:
        return lambda block, array, first, stride: block
    return lambda block, array, first, stride: Streamed(block, array, first, stride)


@overload(block_of)
def _overload_block_of(block):
    return (lambda block: block.block) if _is_streamed(block) else (lambda block: block)


@overload(load)
def _overload_load(block, i):
    if not _is_streamed(block):
        return None
    lanes = Lanes(block.types[0].dtype).count

    def load_and_prefetch(block, i):
        prefetch(block.array, block.first + (i & (lanes - 1)) * block.stride + (i & -lanes))
        return load(block.block, i)

    return load_and_prefetch


@overload(store)
def _overload_store(block, i, value):
    return (lambda block, i, value: store(block.block, i, value)) if _is_streamed(block) else None

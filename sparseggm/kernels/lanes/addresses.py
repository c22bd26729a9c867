"""Arrays at addresses, for kernels so short that passing them arrays would cost more than their work.

Numba takes 0.2 µs to unpack an array, and as long to count its references; an integer takes no time. The caller keeps
the memory alive, and guarantees its size.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

from sparseggm.kernels import INNER, njit

# ---------------------------------------------------------------------- rows of a batch


@njit(**INNER)
def read_rows(address, rows, size, like):
    """A read-only array (rows, size)."""
    return read_at(address, rows * size, like).reshape(rows, size)


@njit(**INNER)
def write_rows(address, rows, size, like):
    """An array (rows, size); at the address 0, which marks an unwanted result, an array (0, size)."""
    rows = rows if address else 0
    return write_at(address, rows * size, like).reshape(rows, size)


# ---------------------------------------------------------------------- meaning


def read_at(address, size, like):
    """The array (size,) of the type of `like` at an address, read-only."""
    array = write_at(address, size, like)
    array.flags.writeable = False
    return array


def write_at(address, size, like):
    """The array (size,) of the type of `like` at an address."""
    memory = (ctypes.c_byte * (size * like.itemsize)).from_address(address)
    return np.frombuffer(memory, like.dtype)


# ---------------------------------------------------------------------- instructions


def _overload_at(function, readonly):
    @intrinsic
    def make(context, address, size, like):
        kind = types.Array(like, 1, "C", readonly=readonly)

        def codegen(context, builder, signature, arguments):
            array = context.make_array(kind)(context, builder)
            place, length, _ = arguments
            element = context.get_data_type(kind.dtype)
            itemsize = context.get_constant(types.intp, context.get_abi_sizeof(element))
            populate_array(
                array,
                data=builder.inttoptr(place, element.as_pointer()),
                shape=cgutils.pack_array(builder, [length]),
                strides=cgutils.pack_array(builder, [itemsize]),
                itemsize=itemsize,
                meminfo=None,
            )
            return array._getvalue()

        return kind(types.intp, types.intp, like), codegen

    @overload(function)
    def choose(address, size, like):
        return lambda address, size, like: make(address, size, like)


_overload_at(read_at, True)
_overload_at(write_at, False)

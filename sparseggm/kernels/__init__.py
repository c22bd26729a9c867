"""Numba kernels: loops on raw arrays, no checks, no exceptions, status by return value.

`symbolic` works on patterns (orders, fill), `sparse` on values. Each file is self-contained, because Numba's
cache does not see a change in a function that another file defines.
"""

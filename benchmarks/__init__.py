"""Timings against what a user would otherwise write, and against the memory limit: `python -m benchmarks`.

Nothing here is asserted: ratios are for reading. Every row is measured in interleaved rounds, so that whatever else the
machine does falls on all contestants alike.
"""

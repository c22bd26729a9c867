"""Patterns as text, for programs that leave the process in which their patterns live: see `torch.export`.

Text is the pattern's key, a colon, and column lengths and row − column of each entry as compressed 32-bit integers in
base 64: some hundred bytes for a lattice's factor, a byte or two an entry for an irregular fill.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np

from sparseggm.errors import PatternError
from sparseggm.graph.pattern import Pattern


def to_text(pattern: Pattern) -> str:
    """The pattern and its key."""
    numbers = np.concatenate([np.diff(pattern.indptr), pattern.rows - pattern.cols]).astype("<i4")
    body = base64.b64encode(zlib.compress(pattern.n.to_bytes(4, "little") + numbers.tobytes(), 9))
    return f"{pattern.key}:{body.decode('ascii')}"


def from_text(text: str) -> Pattern:
    """The pattern that `to_text` wrote.

    Raises:
        PatternError: the text is of no pattern, or of another than its key says.
    """
    key, _, body = text.partition(":")
    try:
        numbers = np.frombuffer(zlib.decompress(base64.b64decode(body, validate=True)), "<i4")
    except (ValueError, zlib.error) as error:
        raise PatternError(f"from_text: not the text of a pattern: {error}.") from None
    n, rest = int(numbers[0]) if numbers.size else 0, numbers[1:]
    lengths, offsets = rest[:n], rest[n:]
    if lengths.sum() != len(offsets):
        raise PatternError(f"from_text: {len(offsets)} entries, but columns of {lengths.sum()} in all.")
    pattern = Pattern(n, np.concatenate([[0], np.cumsum(lengths)]), offsets + np.repeat(np.arange(n), lengths))
    if pattern.key != key:
        raise PatternError(f"from_text: the text is of a pattern with key {pattern.key}, not {key}.")
    return pattern

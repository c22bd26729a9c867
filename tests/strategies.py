"""What the tests are tried on: hypothesis strategies for patterns, topologies, factors, precisions and batches.

Hypothesis draws the structure (family, size, batch shapes, dtype, conditioning, storage), which it can shrink; the
numbers come from a generator seeded by one drawn integer. The corners are drawn on purpose: one node, no edges, a
dense pattern, no batch axes, an empty batch, a batch longer than a kernel's lanes, read-only and strided arrays.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sparseggm import GaussianGraphicalModel, Pattern, Topology
from tests.numerics import WIDE, Array
from tests.topologies import sides, topologies

Shape = tuple[int, ...]

FACTORS = ("plain", "ill-conditioned", "wide range", "decaying", "with zeros")
"""Kinds of factor, see `factor_values`."""
MODERATE_FACTORS = ("plain", "with zeros")

PRECISIONS = ("gram", "dominant", "wide range", "nearly singular", "decaying")
"""Kinds of precision, see `precision_values`."""

BATCHES: tuple[tuple[Shape, Shape], ...] = (
    ((), ()),
    ((1,), (1,)),
    ((3, 2), (3, 2)),
    ((0,), (0,)),
    ((19,), (19,)),
    ((), (5,)),
    ((4,), ()),
    ((3, 1), (2,)),
    ((2, 1), (1, 3)),
    ((), (0,)),
    ((0, 2), (1,)),
)
"""Batch shapes of two arguments that broadcast; 19 is more than the lanes of a kernel."""

STORAGES = ("plain", "read-only", "strided", "reversed", "transposed")

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "float64"])

FOUR_CYCLE = Pattern.from_edges(4, [(1, 0), (2, 1), (3, 2), (3, 0)])
"""Not closed: eliminating node 0 joins 1 and 3."""


# ---------------------------------------------------------------------- patterns


@st.composite
def random_patterns(draw: st.DrawFn, most: int) -> Pattern:
    """Any set of edges, from none to all; rarely closed under elimination."""
    n = draw(st.integers(1, most))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Pattern.from_edges(n, np.argwhere(np.tril(rng.random((n, n)) < density, -1)))


def dense_pattern(n: int) -> Pattern:
    return Pattern.from_edges(n, list(itertools.combinations(range(n), 2)))


@st.composite
def named_patterns(draw: st.DrawFn, most: int = 4, of: str = "factor", closed: bool = False) -> tuple[str, Pattern]:
    """(family, pattern): a topology's pattern of its factor or its precision, or one that no topology has.

    With closed=True the fill of such a pattern.
    """
    if draw(st.booleans()):
        topology = draw(topologies(most))
        family, pattern = type(topology).__name__, getattr(topology, f"{of}_pattern")
    else:
        arbitrary = {"random": random_patterns(3 * most), "dense": sides(2 * most).map(dense_pattern)}
        family = draw(st.sampled_from(sorted(arbitrary)))
        pattern = draw(arbitrary[family])
    return family, pattern.filled() if closed else pattern


# ---------------------------------------------------------------------- values


def factor_values(rng: np.random.Generator, pattern: Pattern, batch: Shape, kind: str, dtype: Any) -> Array:
    """Values (..., nnz) of a factor.

    plain: couplings of a column sum, in squares, to about that of its diagonal: condition numbers near 10;
    ill-conditioned: every coupling about as large as the diagonal, so that errors may grow with every column;
    wide range: rows and columns of a plain one scaled by powers of two, 2^±24 in float64 and 2^±6 in float32;
    decaying: couplings of 1e-4 to 1e-12, whose products soon underflow in float32;
    with zeros: a plain one of which half the couplings are zero.
    """
    off_diagonal = pattern.rows != pattern.cols
    values = rng.standard_normal((*batch, pattern.nnz))
    if kind != "ill-conditioned":
        values *= 0.7 / np.sqrt(pattern.longest_column)
    if kind == "decaying":
        values *= 10.0 ** rng.uniform(-12, -4, values.shape)
    if kind == "with zeros":
        values *= rng.random(values.shape) < 0.5
    values = np.where(off_diagonal, values, rng.uniform(0.5, 2.0, values.shape))
    if kind == "wide range":
        reach = 6 if dtype == np.float32 else 24
        scale = 2.0 ** rng.integers(-reach, reach + 1, (2, *batch, pattern.n))
        values *= scale[0][..., pattern.rows] * scale[1][..., pattern.cols]
    return values.astype(dtype)


def precision_values(rng: np.random.Generator, pattern: Pattern, batch: Shape, kind: str, dtype: Any) -> Array:
    """Values (..., nnz) of a positive-definite precision on `pattern`, away from singular by far more than rounding.

    gram: L Lᵀ of a plain factor if the pattern is closed, else as dominant;
    dominant: strictly diagonally dominant;
    wide range: D M D with M dominant and D powers of two;
    nearly singular: D (I − s R) D with its least scaled eigenvalue between 1e-3 and 1e-1;
    decaying: dominant with couplings so small that fill underflows in float32.
    """
    if kind == "gram" and pattern.is_closed:
        factor = pattern.to_dense(factor_values(rng, pattern, batch, "plain", np.float64))
        return pattern.values_of(np.tril(factor @ np.swapaxes(factor, -1, -2)) * mask(pattern)).astype(dtype)
    couplings = rng.standard_normal((*batch, pattern.nnz))
    if kind == "decaying":
        couplings *= 10.0 ** rng.uniform(-12, -4, couplings.shape)
    if kind == "nearly singular":
        distance = 10.0 ** rng.uniform(-3, -1, batch)
        values = scaled_distance_values(rng, pattern, couplings, distance)
    else:
        values = dominant_values(rng, pattern, couplings)
    if kind == "wide range":
        reach = 12 if dtype == np.float32 else 80
        scale = 2.0 ** rng.integers(-reach, reach + 1, (*batch, pattern.n))
        values *= scale[..., pattern.rows] * scale[..., pattern.cols]
    return values.astype(dtype)


def dominant_values(rng: np.random.Generator, pattern: Pattern, couplings: Array) -> Array:
    """P_ij = w_ij and P_ii = Σ_j |w_ij| + a slack in [0.1, 2]."""
    dense = pattern.to_dense(couplings, symmetric=True)
    radii = abs(dense).sum(axis=-1) - abs(np.diagonal(dense, axis1=-2, axis2=-1))
    diagonal = radii + rng.uniform(0.1, 2.0, radii.shape)
    return np.where(pattern.rows == pattern.cols, diagonal[..., pattern.rows], couplings)


def scaled_distance_values(rng: np.random.Generator, pattern: Pattern, couplings: Array, distance: Array) -> Array:
    """P = D (I − s R) D, with λ_min(I − s R) = `distance`, which may be negative, wherever R ≠ 0."""
    off_diagonal = pattern.rows != pattern.cols
    r = pattern.to_dense(np.where(off_diagonal, couplings, 0), symmetric=True)
    top = np.linalg.eigvalsh(r)[..., -1]
    s = np.where(top > 0, (1 - distance) / np.where(top > 0, top, 1), 0)
    d = rng.uniform(0.5, 2.0, (*np.shape(distance), pattern.n))
    values = np.where(off_diagonal, -s[..., None] * couplings, 1)
    return np.asarray(values * d[..., pattern.rows] * d[..., pattern.cols])


def stored(array: Array, how: str) -> Array:
    """Equal values in another layout of memory, if they have an axis."""
    if not array.ndim:
        return array
    if how == "read-only":
        array = array.copy()
        array.flags.writeable = False
    elif how == "strided":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        array = wide[..., ::2]
    elif how == "reversed":
        array = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    elif how == "transposed":
        array = np.asfortranarray(array)
    return array


# ---------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Problem:
    """One matrix (or a batch) on a pattern, and what is needed to draw vectors and further matrices to go with it."""

    family: str
    pattern: Pattern
    values: Array
    other_batch: Shape
    storage: str
    rng: np.random.Generator

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    @property
    def batch(self) -> Shape:
        """Of the matrix."""
        return self.values.shape[:-1]

    @property
    def full_batch(self) -> Shape:
        return np.broadcast_shapes(self.batch, self.other_batch)

    def vector(self) -> Array:
        """(..., n), some entries zero, magnitudes over a few decades."""
        return self.packed_like(self.pattern.n)

    def packed_like(self, size: int) -> Array:
        """(..., size) of any values."""
        shape = (*self.other_batch, size)
        numbers = self.rng.standard_normal(shape) * 10.0 ** self.rng.uniform(-2, 2, shape)
        return stored((numbers * (self.rng.random(shape) < 0.9)).astype(self.dtype), self.storage)

    def dense(self, symmetric: bool = False) -> Array:
        """The matrix, in WIDE."""
        return dense(self.pattern, self.values, symmetric)


@st.composite
def problems(
    draw: st.DrawFn,
    patterns: st.SearchStrategy[tuple[str, Pattern]],
    make: Any,
    kinds: tuple[str, ...],
    batches: tuple[tuple[Shape, Shape], ...] = BATCHES,
) -> Problem:
    family, pattern = draw(patterns)
    batch, other_batch = draw(st.sampled_from(batches))
    dtype = np.dtype(draw(st.sampled_from(["float32", "float64"])))
    kind = draw(st.sampled_from(kinds))
    storage = draw(st.sampled_from(STORAGES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = stored(make(rng, pattern, batch, kind, dtype), storage)
    return Problem(family, pattern, values, other_batch, storage, rng)


def factor_problems(
    *, closed: bool = False, kinds: tuple[str, ...] = FACTORS, most: int = 4, batches: Any = BATCHES
) -> st.SearchStrategy[Problem]:
    """A factor, well or ill conditioned, on a pattern that may or may not be closed."""
    return problems(named_patterns(most, "factor", closed), factor_values, kinds, batches)


def precision_problems(*, kinds: tuple[str, ...] = PRECISIONS, most: int = 4) -> st.SearchStrategy[Problem]:
    """A positive-definite precision."""
    return problems(named_patterns(most, "precision"), precision_values, kinds)


# ---------------------------------------------------------------------- Gaussians


@st.composite
def gaussians(draw: st.DrawFn, topology: Topology | None = None, dtype: str | None = None) -> GaussianGraphicalModel:
    """From a factor or from a precision; batches of loc and of the rest broadcast."""
    topology = topology or draw(topologies(3))
    dtype = dtype or draw(st.sampled_from(["float32", "float64"]))
    loc_batch, batch = draw(st.sampled_from(BATCHES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    loc = rng.standard_normal((*loc_batch, topology.n)).astype(dtype)
    if draw(st.booleans()):
        precision = precision_values(rng, topology.precision_pattern, batch, "dominant", dtype)
        return GaussianGraphicalModel.from_precision(loc, precision=precision, topology=topology)
    kind = draw(st.sampled_from(MODERATE_FACTORS))
    factor = factor_values(rng, topology.factor_pattern, batch, kind, dtype)
    return GaussianGraphicalModel(loc, factor=factor, topology=topology)


# ---------------------------------------------------------------------- dense forms


def dense(pattern: Pattern, values: Array, symmetric: bool = False) -> Array:
    """(..., n, n) in WIDE."""
    return pattern.to_dense(values.astype(WIDE), symmetric)


def mask(pattern: Pattern) -> Any:
    """(n, n) boolean: where the pattern has an entry."""
    return pattern.to_dense(np.ones(pattern.nnz, bool))

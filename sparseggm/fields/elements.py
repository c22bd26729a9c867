"""Linear finite elements: mass, stiffness, and where a point lies, on a mesh of triangles and on a regular lattice.

    C_ii = ∫ ψ_i (lumped mass),    G_ij = ∫ ∇ψ_i · ∇ψ_j (stiffness),    A_ki = ψ_i(s_k) (projector)

Boundaries are free (Neumann), as the integrals are over the mesh alone.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.spatial import cKDTree

from sparseggm.errors import NonPositiveError, PatternError, ShapeError
from sparseggm.fields.parameters import constants
from sparseggm.graph.derived import derived
from sparseggm.graph.edges import require_at_least
from sparseggm.graph.pattern import FloatArray, IntArray
from sparseggm.promotion import as_numbers

INSIDE = 1e-10
"""A point counts as inside of a triangle where no barycentric coordinate is below minus this."""


class Elements(NamedTuple):
    """Mass and stiffness of n elements."""

    mass: FloatArray
    """(n,) C_ii > 0."""
    stiffness: Any
    """(n, n) G, scipy.sparse."""


class Domain(Protocol):
    """Where a field lives: its elements, and the projector of points."""

    n: int
    dimension: int

    def elements(self) -> Elements:
        """Mass and stiffness."""
        ...

    def projector(self, places: npt.ArrayLike) -> Any:
        """(k, n) scipy.sparse: row k has the values of all elements at point k."""
        ...


class Mesh:
    """Triangles in the plane, as of `scipy.spatial.Delaunay`: `Mesh(points, delaunay.simplices)`.

    Args:
        points: (n, 2) coordinates; a point is a node.
        triangles: (m, 3) points, in any orientation.
    Raises:
        PatternError: a triangle without area, or a point in no triangle.
    """

    dimension = 2

    def __init__(self, points: npt.ArrayLike, triangles: npt.ArrayLike) -> None:
        self.points = _coordinates("Mesh", "points", points, 2)
        self.n = len(self.points)
        t, _ = as_numbers("Mesh", "triangles", triangles)
        if t.ndim != 2 or t.shape[1] != 3 or not np.issubdtype(t.dtype, np.integer):
            raise ShapeError(f"Mesh: triangles must be (m, 3) integers, got {t.dtype} of shape {t.shape}.")
        if t.size and (t.min() < 0 or t.max() >= self.n):
            raise PatternError(f"Mesh: triangles must be of points 0 … {self.n - 1}, got {t.min()} … {t.max()}.")
        self.triangles: IntArray = t.astype(np.int64)
        lonely = np.setdiff1d(np.arange(self.n), t)
        if lonely.size:
            raise PatternError(f"Mesh: every point must be in a triangle, got point {lonely[0]} in none. Leave it out.")
        corners = self.points[t]
        self._sides = corners[:, [2, 0, 1]] - corners[:, [1, 2, 0]]  # opposite to each corner
        u, v = self._sides[:, 0], self._sides[:, 1]
        self.areas: FloatArray = 0.5 * abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
        longest = (self._sides**2).sum(-1).max(-1)
        flat = self.areas <= 16 * np.finfo(float).eps * longest
        if flat.any():
            k = int(np.argmax(flat))
            raise PatternError(f"Mesh: every triangle must have an area, got {self.areas[k]:.3g} of triangle {k}.")
        self._require_no_overlap()

    def _require_no_overlap(self) -> None:
        """Raise where a triangle is given twice, or three meet at a side: they would count twice in the matrices."""
        n, (i, j, k) = self.n, np.sort(self.triangles, axis=1).T
        # A side as one number; a triangle as the place of the side of its first two corners, and the third.
        every_side = np.concatenate([i * n + j, j * n + k, i * n + k])
        sides, places, of_side = np.unique(every_side, return_inverse=True, return_counts=True)
        triangles, times = np.unique(places[: len(i)] * n + k, return_counts=True)
        if (times > 1).any():
            side, corner = divmod(triangles[times > 1][0], n)
            corners = np.array([*divmod(sides[side], n), corner])
            raise PatternError(f"Mesh: a triangle may be given once, got that of {corners} twice.")
        if (of_side > 2).any():
            ends = np.array(divmod(sides[of_side > 2][0], n))
            raise PatternError(f"Mesh: a side may be of two triangles, got that of {ends} in more.")

    def __repr__(self) -> str:
        return f"Mesh(n={self.n}, {len(self.triangles)} triangles)"

    def elements(self) -> Elements:
        """C_ii = Σ area/3, and G_ij = Σ e_i · e_j / (4 area) over the triangles, e_i the side opposite to i."""
        t = self.triangles
        mass = np.bincount(t.ravel(), np.repeat(self.areas / 3, 3), self.n)
        local = np.einsum("tik,tjk->tij", self._sides, self._sides) / (4 * self.areas[:, None, None])
        rows, cols = np.repeat(t, 3, axis=1).ravel(), np.tile(t, (1, 3)).ravel()
        return Elements(mass, scipy.sparse.csr_array((local.ravel(), (rows, cols)), (self.n, self.n)))

    def projector(self, places: npt.ArrayLike) -> Any:
        """Barycentric coordinates of each point (k, 2) in a triangle that holds it, three a row.

        Raises:
            ValueError: a point is in no triangle.
        Cost: O(log n) a point and a size of triangles.
        """
        places = _coordinates("Mesh.projector", "places", places, 2)
        best, weights = np.full(len(places), -np.inf), np.zeros((len(places), 3))
        triangle = np.zeros(len(places), np.int64)
        for point, candidate in self._candidates(places):
            found = self._barycentric(places[point], candidate)
            depth = found.min(axis=1)
            order = np.lexsort((depth, point))
            last = order[np.append(point[order][1:] != point[order][:-1], True)] if len(order) else order
            last = last[depth[last] > best[point[last]]]
            best[point[last]], triangle[point[last]], weights[point[last]] = depth[last], candidate[last], found[last]
        outside = best < -INSIDE - self._rounding[triangle]
        if outside.any():
            k = int(np.argmax(outside))
            raise ValueError(
                f"Mesh.projector: every place must be in a triangle, got {tuple(places[k].tolist())} at row {k}. "
                "Extend the mesh, by about the range of the field."
            )
        entries = (weights.ravel(), self.triangles[triangle].ravel(), np.arange(0, 3 * len(places) + 1, 3))
        return scipy.sparse.csr_array(entries, (len(places), self.n))

    def _candidates(self, places: FloatArray) -> Any:
        """Pairs (point, triangle) near enough, for triangles of one size, to a factor of two, after another."""
        corners = self.points[self.triangles]
        centres = corners.mean(axis=1)
        radii = np.sqrt(((corners - centres[:, None]) ** 2).sum(-1)).max(-1) * (1 + 1e-9)
        sizes = np.floor(np.log2(radii)).astype(int)
        for size in np.unique(sizes):
            chosen = np.flatnonzero(sizes == size)
            near = cKDTree(centres[chosen]).query_ball_point(places, radii[chosen].max())
            counts = np.array([len(each) for each in near])
            if counts.any():
                yield np.repeat(np.arange(len(places)), counts), chosen[np.concatenate(near).astype(np.int64)]

    @derived
    def _rounding(self) -> FloatArray:
        """Of shares in each triangle, by that of coordinates: a few units of these over its least height."""
        corners = self.points[self.triangles]
        sides = corners - np.roll(corners, 1, axis=1)
        area = abs(sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0])  # twice
        longest = np.sqrt((sides**2).sum(-1)).max(-1)
        rounding: FloatArray = 8 * np.finfo(np.float64).eps * abs(corners).max(axis=(1, 2)) * longest / area
        return rounding

    def _barycentric(self, places: FloatArray, triangle: IntArray) -> FloatArray:
        """(t, 3) the shares of the triangle's area that lie opposite to each corner."""
        a, b, c = np.moveaxis(self.points[self.triangles[triangle]], 1, 0)
        u, v, w = b - a, c - a, places - a
        area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
        second = (w[:, 0] * v[:, 1] - w[:, 1] * v[:, 0]) / area
        third = (u[:, 0] * w[:, 1] - u[:, 1] * w[:, 0]) / area
        return np.stack([1 - second - third, second, third], axis=-1)


class Lattice:
    """A regular lattice of any dimension, products of linear elements; node numbers have the last axis fastest.

    Args:
        shape: sides, each at least 2; a number for a line.
        spacing: distance of neighbours along every axis, or one for each. Node (i, j) is at (i, j) · spacing.
    """

    def __init__(self, shape: int | tuple[int, ...], spacing: npt.ArrayLike = 1.0) -> None:
        sides = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        require_at_least(1, "Lattice", dimensions=len(sides))
        require_at_least(2, "Lattice", **{f"side {axis}": side for axis, side in enumerate(sides)})
        self.shape, self.dimension, self.n = tuple(map(int, sides)), len(sides), math.prod(sides)
        (each,) = constants("Lattice", spacing=spacing)
        if each.shape not in ((), (1,), (self.dimension,)):
            raise ShapeError(
                f"Lattice: spacing must be a number or ({self.dimension},), one for each axis, got shape {each.shape}."
            )
        self.spacing = np.broadcast_to(each, (self.dimension,))
        if not ((self.spacing > 0) & np.isfinite(self.spacing)).all():
            raise NonPositiveError(f"Lattice: spacing must be positive and finite, got {self.spacing}.")

    def __repr__(self) -> str:
        return f"Lattice({self.shape})"

    def elements(self) -> Elements:
        """Along one axis C = h (½, 1, …, 1, ½) and G = (−1, 2, −1) / h; G is Σ over axes, with C of the other axes."""
        masses, stiffnesses = [], []
        for side, h in zip(self.shape, self.spacing, strict=True):
            ends = np.full(side, 1.0)
            ends[[0, -1]] = 0.5
            masses.append(h * ends)
            off = np.full(side - 1, -1.0 / h)
            stiffnesses.append(scipy.sparse.diags_array([off, 2.0 * ends / h, off], offsets=(-1, 0, 1)))
        stiffness = sum(
            reduce(
                scipy.sparse.kron,
                [stiffnesses[k] if k == axis else scipy.sparse.diags_array(masses[k]) for k in range(self.dimension)],
            )
            for axis in range(self.dimension)
        )
        return Elements(reduce(np.kron, masses), scipy.sparse.csr_array(stiffness))

    def projector(self, places: npt.ArrayLike) -> Any:
        """Multilinear weights of each point (k, dimension), 2^dimension a row.

        Raises:
            ValueError: a point is outside.
        """
        places = _coordinates("Lattice.projector", "places", places, self.dimension)
        steps, sides = places / self.spacing, np.array(self.shape)
        outside = ((steps < -INSIDE) | (steps > sides - 1 + INSIDE)).any(axis=1)
        if outside.any():
            k = int(np.argmax(outside))
            raise ValueError(
                f"Lattice.projector: every place must be on the lattice, got {tuple(places[k].tolist())} at row {k}."
            )
        low = np.clip(np.floor(steps), 0, sides - 2).astype(np.int64)
        part = steps - low
        corners = np.stack(np.meshgrid(*[[0, 1]] * self.dimension, indexing="ij"), -1).reshape(-1, self.dimension)
        weights = np.where(corners, part[:, None], 1 - part[:, None]).prod(-1)
        nodes = np.ravel_multi_index(tuple(np.moveaxis(low[:, None] + corners, -1, 0)), self.shape)
        rows = np.repeat(np.arange(len(places)), len(corners))
        matrix = scipy.sparse.csr_array((weights.ravel(), (rows, nodes.ravel())), (len(places), self.n))
        matrix.eliminate_zeros()
        return matrix


def _coordinates(function: str, name: str, value: npt.ArrayLike, dimension: int) -> FloatArray:
    """(k, dimension) finite float64 coordinates."""
    (array,) = constants(function, **{name: value})
    if array.ndim != 2 or array.shape[1] != dimension:
        raise ShapeError(f"{function}: {name} must be (k, {dimension}), got shape {array.shape}.")
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        raise ValueError(f"{function}: {name} must be finite, got {tuple(array[row].tolist())} at row {row}.")
    return array

"""Gaussians in npz files: plain arrays and JSON text, never a pickled object.

A file holds mean, factor, the factor's pattern and its key, the precision where that was given, the topology, its order
of elimination and the version of the rule that found it. Loading builds the topology anew and compares: a file whose
layout this version would not make is refused, not reinterpreted. Where another rule found the order, the topology
takes the order of the file as given.
"""

from __future__ import annotations

import json
import operator
import os
from dataclasses import fields
from typing import Any

import numpy as np

from sparseggm.errors import PatternError
from sparseggm.files import DAMAGE, damage, write_atomically
from sparseggm.gaussian.model import GaussianGraphicalModel, require_arrays
from sparseggm.graph import families, graphs
from sparseggm.graph.graphs import Graph, Grid, Torus
from sparseggm.graph.orders import RULE
from sparseggm.graph.pattern import Pattern
from sparseggm.graph.topology import Ordered, Topology
from sparseggm.linalg import checks
from sparseggm.promotion import constant

FORMAT = 1
HEADER = ("format", "topology", "arguments", "key", "is_on_topology")
FIRST_RULE = 1
"""The rule of orders in files without a "rule"."""

TOPOLOGIES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        families.Diagonal,
        families.Chain,
        families.Band,
        families.BlockChain,
        families.ExtendedGrid,
        families.Stencil,
        graphs.Grid,
        graphs.Torus,
        graphs.Tree,
        graphs.Star,
        graphs.Cycle,
        graphs.Graph,
    )
}


def save(path: str | os.PathLike[str], gaussian: GaussianGraphicalModel) -> None:
    """Write a Gaussian to an uncompressed npz file, which replaces an older one at once or not at all.

    Raises:
        TypeError: not a Gaussian of arrays; of one of tensors save `q.numpy()`.
        PatternError: the topology is a class of your own.
        OSError: the file cannot be written; an older one is untouched.
    """
    require_arrays("save", gaussian)
    kind, arguments = _describe(gaussian.topology)
    pattern = gaussian.factor_pattern
    header = {
        "format": FORMAT,
        "rule": RULE,
        "topology": kind,
        "arguments": arguments,
        "key": pattern.key,
        "is_on_topology": gaussian.is_on_topology,
    }
    arrays: dict[str, Any] = {
        "header": np.array(json.dumps(header, default=operator.index)),
        "edges": gaussian.topology.edges,
        "order": gaussian.topology.order,
        "indptr": pattern.indptr,
        "rows": pattern.rows,
        "loc": gaussian.loc,
        "factor": gaussian.factor,
    }
    if gaussian._given is not None:
        arrays["precision"] = gaussian._given
    if gaussian._nodes is not None:
        arrays["nodes"] = gaussian._nodes
    write_atomically(path, lambda file: np.savez(file, **arrays))


def load(path: str | os.PathLike[str]) -> GaussianGraphicalModel:
    """Read a Gaussian from a file that `save` wrote.

    A topology that finds its own order may come back with its order given: `Grid(28, 28, order=…)`, which is not equal
    to `Grid(28, 28)`, if it was written by a version whose rule found another one than today's.

    Raises:
        PatternError: not such a file, a damaged one, another format, or an order that its own rule does not find.
        OSError: the file cannot be opened.
        ShapeError, NonFiniteError, …: as the constructor.
    """
    name = os.fsdecode(path)
    arrays, header = _read(name)
    form, kind = header["format"], header["topology"]
    if form != FORMAT or kind not in list(TOPOLOGIES):
        raise PatternError(
            f"load: {name} has format {form} and topology {kind!r}; needed format {FORMAT} and one of "
            f"{', '.join(TOPOLOGIES)}."
        )
    try:
        built = _build(kind, header["arguments"], arrays, header["rule"])
        pattern = Pattern(built.n, arrays["indptr"], arrays["rows"])
        same_graph = np.array_equal(built.edges, arrays["edges"]) and np.array_equal(built.order, arrays["order"])
        same_pattern, is_on_topology = pattern.key == header["key"], header["is_on_topology"]
        if not isinstance(is_on_topology, bool) or not isinstance(header["rule"], int):
            raise TypeError(f"is_on_topology is {is_on_topology!r}, rule is {header['rule']!r}")
        loc, factor = arrays["loc"], arrays["factor"]
    except DAMAGE as error:
        raise _foreign(name, repr(error)) from error
    if not (same_graph and same_pattern):
        raise PatternError(f"load: {name} has another graph, order of elimination or pattern than {built}.")
    gaussian = GaussianGraphicalModel.from_factor(loc, factor=factor, topology=built, pattern=pattern)
    gaussian.is_on_topology = is_on_topology
    if (precision := arrays.get("precision")) is not None:
        expected = (*factor.shape[:-1], built.precision_pattern.nnz)
        if precision.dtype != factor.dtype or precision.shape != expected:
            raise _foreign(name, f"precision {precision.dtype} {precision.shape}, needed {factor.dtype} {expected}")
        checks.require_finite("load", "precision", built.precision_pattern, precision, built)
        gaussian._given = constant(precision)
    if (nodes := arrays.get("nodes")) is not None:
        if nodes.dtype != np.int64 or nodes.shape != (built.n,):
            raise _foreign(name, f"nodes {nodes.dtype} {nodes.shape}, needed int64 {(built.n,)}")
        gaussian._numbered(nodes)
    return gaussian


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and header of a whole archive."""
    with open(name, "rb") as file:
        if (reason := damage(file)) is not None:
            raise _foreign(name, reason)
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
            stored_header = json.loads(str(arrays["header"]))
            header = {entry: stored_header[entry] for entry in HEADER} | {"rule": stored_header.get("rule", FIRST_RULE)}
        except DAMAGE as error:
            raise _foreign(name, repr(error)) from error
    return arrays, header


def _foreign(name: str, reason: str) -> PatternError:
    return PatternError(f"load: {name} is not a file that sparseggm.save wrote ({reason}).")


def _describe(of: Topology) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a topology, as JSON; edges and order are stored as separate arrays."""
    kind = type(of).__name__
    if TOPOLOGIES.get(kind) is not type(of):
        raise PatternError(f"save: {of} is not one of {', '.join(TOPOLOGIES)}. Save it as Graph(n, edges).")
    if isinstance(of, Graph):
        return kind, {"n": of.n, "ordered": of.given_order is not None}
    facts = {each.name: getattr(of, each.name) for each in fields(of)}  # type: ignore[arg-type]
    if isinstance(of, Ordered):
        facts["ordered"] = facts.pop("given_order") is not None
    return kind, facts


def _build(kind: str, arguments: dict[str, Any], arrays: dict[str, Any], rule: int) -> Topology:
    make, rest, stored = TOPOLOGIES[kind], dict(arguments), {"order": arrays["order"]}
    is_given = rest.pop("ordered", False)
    sizes: list[Any] = []
    if make is Graph:
        sizes, rest = [rest["n"], arrays["edges"]], {}
    elif make in (Grid, Torus):
        sizes, rest = rest["shape"], {}
    built: Topology = make(*sizes, **rest, **(stored if is_given else {}))
    if rule != RULE and isinstance(built, Ordered) and not np.array_equal(built.order, arrays["order"]):
        built = make(*sizes, **rest, **stored)
    return built

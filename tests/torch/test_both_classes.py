"""The two classes of Gaussians have one list of names, and by each name the same numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.distributions import Distribution

import sparseggm as sg
from sparseggm import fields
from sparseggm.torch import GaussianGraphicalModel as Torch
from sparseggm.torch import (
    GreyLevels,
    LogitNormal,
    Potential,
    Residual,
    kl_terms,
    natural_step,
    precondition,
    refine,
    sample_and_kl,
)
from tests.torch import support
from tests.torch.gaussians import Kind, in_numpy

ONLY_IN_NUMPY = {
    "kl_divergence": "torch.distributions.kl_divergence(q, p)",
    "kl_terms": "sparseggm.torch.kl_terms(q, p)",
}
ONLY_IN_TORCH = {
    "rsample": "has gradients",
    "rsample_and_log_prob": "has gradients",
    "detach": "has gradients",
    "expand": "of torch's protocol",
    "numpy": "gives the other class",
    "from_numpy": "comes from the other class",
}
NODES = [(0, 0), (0, 1), (2, 1)]


def names(kind: type, instance: Any) -> set[str]:
    return {name for name in [*dir(kind), *vars(instance)] if not name.startswith("_")}


def value(name: str, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
    def of(g: Any) -> Any:
        found = getattr(g, name)
        return found(*arguments, **options) if callable(found) else found

    return of


CALLS: dict[str, Callable[[Any], Any]] = {
    **{
        name: value(name)
        for name in (
            *("dtype", "entropy", "factor", "factor_pattern", "graph", "information_vector"),
            *("is_on_topology", "loc", "mean", "mode", "n", "precision", "stddev", "topology", "trace_covariance"),
            *("variance", "covariance_matrix", "precision_matrix", "log_normaliser"),
        )
    },
    "batch_shape": lambda g: list(g.batch_shape),
    "colorize": lambda g: g.colorize(np.ones(g.n)),
    "condition": lambda g: g.condition([0], [1.0]),
    "correlation_on": value("correlation_on", NODES),
    "covariance_on": value("covariance_on", NODES),
    "estimate_kl_divergence": value("estimate_kl_divergence", num_probes=4, rng=1),
    "estimate_trace_covariance": value("estimate_trace_covariance", rng=1),
    "fit": lambda g: type(g).fit(np.random.default_rng(0).standard_normal((50, g.n)), g.topology),
    "from_factor": lambda g: type(g).from_factor(g.loc, factor=g.factor, topology=g.graph, pattern=g.factor_pattern),
    "from_information": lambda g: type(g).from_information(np.ones(g.n), precision=g.precision, topology=g.graph),
    "from_precision": lambda g: type(g).from_precision(np.ones(g.n), precision=g.precision, topology=g.graph),
    "covariance_matmul": lambda g: g.covariance_matmul(np.ones(g.n)),
    "log_evidence": value("log_evidence", [0, 1], [1.0, 2.0], 0.5),
    "nodes": lambda g: g.nodes.tolist(),
    "observe": value("observe", [0, 1], [1.0, 2.0], 0.5),
    "log_prob": lambda g: g.log_prob(np.ones(g.n)),
    "marginal": value("marginal", [1, 0]),
    "moved_to": lambda g: g.moved_to(np.ones(g.n)),
    "product": lambda g: g.product(g),
    "sample": lambda g: list(g.sample((2,)).shape),
    "whiten": lambda g: g.whiten(np.ones(g.n)),
}


def test_the_names_are_the_same_but_for_those_of_a_protocol() -> None:
    q = Kind(sg.Chain(4), "factor").example()
    ours, theirs = names(type(q), q), names(sg.GaussianGraphicalModel, in_numpy(q))
    protocol = set(dir(Distribution)) - theirs
    assert theirs - ours <= ONLY_IN_NUMPY.keys()
    assert ours - protocol - theirs <= ONLY_IN_TORCH.keys()
    assert (ours & theirs) - ONLY_IN_TORCH.keys() - ONLY_IN_NUMPY.keys() == CALLS.keys()


@pytest.mark.parametrize("topology", support.TOPOLOGIES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_the_numbers_are_the_same(name: str, topology: sg.Topology) -> None:
    q = Kind(topology, "factor" if topology.is_factor_free else "precision").example(2)
    ours, theirs = CALLS[name](q.detach()), CALLS[name](in_numpy(q))
    for one, other in zip(numbers(ours), numbers(theirs), strict=True):
        if isinstance(one, torch.Tensor):
            np.testing.assert_allclose(*np.broadcast_arrays(one.numpy(), other), rtol=1e-11, atol=1e-11)
        elif name == "dtype":
            assert str(one) == f"torch.{other}"
        else:
            assert one is other or one == other


def numbers(result: Any) -> list[Any]:
    if hasattr(result, "is_on_topology"):
        return [result.loc, result.precision]
    return [*result] if isinstance(result, tuple) else [result]


def test_estimates_follow_the_generator_of_torch() -> None:
    q = Kind(sg.Chain(4), "factor").example()
    estimates = [(torch.manual_seed(seed), q.estimate_trace_covariance("hutchinson"))[1].value for seed in (3, 3, 4)]
    assert estimates[0] == estimates[1]
    assert estimates[0] != estimates[2]
    assert not estimates[0].requires_grad
    with pytest.raises(ValueError, match=r"^estimate_trace_covariance: needs numbers, got tensors of a transform"):
        torch.func.vmap(lambda loc: q.moved_to(loc).estimate_trace_covariance().value)(torch.zeros(2, 4))


def test_a_covariance_of_too_many_nodes_is_refused() -> None:
    g = sg.GaussianGraphicalModel(np.zeros(30_000), factor=np.ones(30_000), topology=sg.Diagonal(30_000))
    with pytest.raises(sg.ShapeError, match=r"^covariance_matrix: 30000 nodes would take 7\.2 GB a matrix\. Use cov"):
        g.covariance_matrix()


THAT_KEEP_A_PRECISION: dict[str, Callable[[Any, Any], Any]] = {
    "from_precision": lambda kind, g: g,
    "from_information": lambda kind, g: kind.from_information(np.ones(g.n), precision=g.precision, topology=g.graph),
    "moved_to": lambda kind, g: g.moved_to(np.ones(g.n, np.float32)),
    "detach": lambda kind, g: g.detach() if kind is Torch else g,
    "expand": lambda kind, g: g.expand((5, 2)) if kind is Torch else g,
    "copy": lambda kind, g: copy.deepcopy(g),
    "pickle": lambda kind, g: pickle.loads(pickle.dumps(g)),
    "the other class": lambda kind, g: g.numpy() if kind is Torch else Torch.from_numpy(g),
}


@pytest.mark.parametrize("topology", [sg.Chain(4), sg.Grid(3, 3)], ids=str)
@pytest.mark.parametrize("kind", [sg.GaussianGraphicalModel, Torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", THAT_KEEP_A_PRECISION)
def test_a_given_precision_is_kept(name: str, kind: Any, topology: sg.Topology) -> None:
    """To the bit, whatever is done with it afterwards; 1/3 is no number that L Lᵀ would give back."""
    pattern = topology.precision_pattern
    given = np.full((2, pattern.nnz), 1 / 3, np.float32)
    given[:, pattern.diagonal] = [[4 / 3], [5 / 3]]
    kept = given.copy()
    g = kind.from_precision(np.zeros(topology.n, np.float32), precision=as_of(kind, given), topology=topology)
    given[:] = np.nan
    of = THAT_KEEP_A_PRECISION[name](kind, g)
    np.testing.assert_array_equal(np.asarray(of.precision), kept)


def test_a_precision_that_was_handed_out_may_be_written_into() -> None:
    chain = sg.Chain(3)
    q = Torch.from_precision(torch.zeros(3), precision=torch.tensor([3.0, 1, 3, 1, 3]), topology=chain)
    for of in (q, q.detach(), q.moved_to(torch.ones(3)), q.expand((2,))):
        of.precision.mul_(10)
    assert q.precision.tolist() == [3.0, 1, 3, 1, 3]


@pytest.mark.parametrize("kind", [sg.GaussianGraphicalModel, Torch], ids=["numpy", "torch"])
def test_in_a_wider_dtype_a_gaussian_is_that_of_its_factor(kind: Any) -> None:
    """Whose determinant was rounded: beside the P that was given, evidence would be 1e-7 of it off."""
    grid = sg.Grid(20, 20)
    values = grid.pack((np.full(400, 4.001, np.float32), np.full(760, -1.0, np.float32)))
    g = kind.from_precision(np.zeros(400, np.float32), precision=as_of(kind, values), topology=grid)
    loc, factor = (np.asarray(array, np.float64) for array in (g.loc, g.factor))
    wide = kind.from_factor(loc, factor=factor, topology=grid, pattern=g.factor_pattern)
    y = np.ones(400, np.float64)
    for of in (g.moved_to(np.zeros(400)), g._promoted("test", x=y)[0]):
        np.testing.assert_array_equal(np.asarray(of.precision), np.asarray(wide.precision))
    plan = sg.fields.LinearObservation(grid, scipy.sparse.eye_array(400), noise=grid)
    flat = kind(np.zeros(400), factor=np.full(400, 1e-2), topology=sg.Diagonal(400))
    evidences: dict[str, Callable[[Any], Any]] = {
        "of nodes": lambda of: of.log_evidence(range(400), y, 1e6),
        "by Laplace": lambda of: sg.fields.laplace(of, sg.fields.Normal(y, 1e6)).log_evidence,
        "of noise": lambda of: plan.log_evidence(flat, y, of),
    }
    for name, evidence in evidences.items():
        found, expected = (float(evidence(of)) for of in (g, wide))
        assert found == pytest.approx(expected, rel=1e-13), name


@pytest.mark.parametrize("kind", [sg.GaussianGraphicalModel, Torch], ids=["numpy", "torch"])
def test_a_precision_that_was_summed_is_kept(kind: Any) -> None:
    grid = sg.Grid(3, 3)
    values = grid.pack((np.full(9, 5.1), np.full(12, 1 / 3)))
    g = kind.from_precision(np.zeros(9), precision=as_of(kind, values), topology=grid)
    np.testing.assert_array_equal(np.asarray(g.product(g).precision), values + values)
    seen = values.copy()
    seen[grid.precision_pattern.diagonal[grid.inverse_order[3]]] += 1 / 0.3
    np.testing.assert_array_equal(np.asarray(g.observe([3], [1.0], 0.3).precision), seen)


def as_of(kind: Any, values: np.ndarray[Any, Any]) -> Any:
    return torch.from_numpy(values) if kind is Torch else values


@pytest.mark.parametrize("topology", support.TOPOLOGIES, ids=str)
def test_there_and_back_is_the_same_to_the_bit(topology: sg.Topology) -> None:
    """Also the numbers of a marginal's nodes; the copies share no memory with it."""
    q = Kind(topology, "factor" if topology.is_factor_free else "precision").example(2).marginal([1, 0])
    g = q.numpy()
    back = Torch.from_numpy(g)
    for one, other in ((q, g), (q, back)):
        assert one.topology is other.topology
        assert one.factor_pattern is other.factor_pattern
        assert one.is_on_topology == other.is_on_topology
        assert list(one.nodes) == list(other.nodes) == [1, 0]
        for name in ("loc", "factor", "precision"):
            pair = (
                np.asarray(getattr(each, name).detach() if each is not g else getattr(g, name)) for each in (one, other)
            )
            np.testing.assert_array_equal(*pair)
    back.loc.fill_(np.nan)
    assert np.isfinite(g.loc).all()
    assert q.loc.isfinite().all()


DESIGN = fields.LinearObservation(sg.Chain(4), np.ones((1, 4)))
OF_EITHER: dict[str, Callable[[Any], Any]] = {
    "constrain": lambda g: fields.constrain(g, np.ones((1, 4)), 0.0),
    "laplace": lambda g: fields.laplace(g, fields.Poisson(np.ones(4))),
    "LinearObservation.posterior": lambda g: DESIGN.posterior(g, 1.0, 1.0),
    "LinearObservation.log_evidence": lambda g: DESIGN.log_evidence(g, 1.0, 1.0),
}
OF_ARRAYS: dict[str, Callable[[Any], Any]] = {
    "from_numpy": Torch.from_numpy,
    "save": lambda g: sg.save("nowhere.npz", g),
    "kl_divergence": Kind(sg.Chain(4), "factor").example().numpy().kl_divergence,
    "GreyLevels": sg.GreyLevels,
    "LogitNormal": sg.LogitNormal,
}
OF_TENSORS: dict[str, Callable[[Any], Any]] = {
    "sample_and_kl": sample_and_kl,
    "kl_terms": kl_terms,
    "estimate_kl_divergence": lambda g: Kind(sg.Chain(4), "factor").example().estimate_kl_divergence(g, num_probes=4),
    "natural_step": lambda g: natural_step(g, np.ones(4), np.ones(7)),
    "precondition": precondition,
    "refine": lambda g: refine(g, lambda z: z.sum(-1), 1),
    "GreyLevels": GreyLevels,
    "LogitNormal": LogitNormal,
    "Residual": lambda g: Residual(g, torch.zeros(4), torch.zeros(7)),
}
EVERY = [
    pytest.param(call, wants, id=f"{name}-{wants}")
    for wants, calls in {"either": OF_EITHER, "arrays": OF_ARRAYS, "tensors": OF_TENSORS}.items()
    for name, call in calls.items()
]


@pytest.mark.parametrize(("call", "wants"), EVERY)
def test_what_is_no_gaussian_of_the_kind_that_is_needed_is_refused_by_name(call: Any, wants: str) -> None:
    """A topology has a pattern of L as well, and is none."""
    q = Kind(sg.Chain(4), "factor").example()
    others = {"either": [], "arrays": [q], "tensors": [q.numpy()]}[wants]
    for given in (q.topology, "a word", *others):
        with pytest.raises(TypeError, match=r"\bGaussianGraphicalModel\b"):
            call(given)


def test_what_is_a_gaussian_of_tensors_says_how_it_becomes_one_of_arrays() -> None:
    q = Kind(sg.Chain(4), "factor").example()
    for name, call in OF_ARRAYS.items():
        of_logits = dict.fromkeys(("GreyLevels", "LogitNormal"), "gaussian must be a GaussianGraphicalModel")
        needs = of_logits.get(name, "needs a GaussianGraphicalModel of arrays")
        with pytest.raises(TypeError, match=rf"^{name}: {needs}, got one of tensors: call its numpy\(\)\."):
            call(q)


@pytest.mark.parametrize("topology", [sg.Chain(4), sg.ExtendedGrid(2, 3)], ids=str)
def test_terms_of_the_divergence_from_the_standard_normal_are_those_of_arrays(topology: sg.Topology) -> None:
    q = Kind(topology, "factor").example(2)
    np.testing.assert_allclose(kl_terms(q).detach(), q.numpy().kl_terms(), rtol=1e-11, atol=1e-12)


def test_a_potential_says_its_size_and_dtype() -> None:
    given = {"precision": torch.ones(5), "topology": sg.Diagonal(5)}
    potential = Potential(torch.zeros(5), **given)
    assert (potential.n, potential.dtype) == (5, torch.float32)

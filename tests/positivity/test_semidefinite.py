"""Families for potentials: their definitions, Λ ⪰ 0 whatever the inputs, and what they can reach: nothing at all."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparseggm.torch  # noqa: F401  the rules for tensors
from sparseggm import Chain, DTypeError, Grid, PatternError, ShapeError, Topology, linalg, parametrize
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.positivity.test_families import (
    batches,
    bounded_exp,
    define_edge,
    diagonal_matrix,
    factor_free,
    level,
    values_of,
)
from tests.positivity.test_families import graphs as every_graph
from tests.strategies import dense, dtypes, seeds
from tests.torch.test_parametrize import TOPOLOGIES

NAMES = ("semidefinite_edge", "gram")
every_name = pytest.mark.parametrize("name", NAMES)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Topology]:
    name = draw(st.sampled_from(NAMES))
    return name, draw(factor_free if name == "gram" else every_graph)


def softplus(d: Array) -> Array:
    return np.log1p(np.exp(-abs(d))) + np.maximum(d, 0)


def define(name: str, topology: Topology, inputs: Array) -> tuple[Array, Array, Array]:
    """Λ in the caller's numbering, the magnitudes that its entries are sums of, and those that multiply a softplus."""
    n = topology.n
    if name == "semidefinite_edge":
        d = inputs[..., :n]
        L = define_edge(topology, inputs)[0] + diagonal_matrix(softplus(d) - bounded_exp(d))
        return L, abs(L) + diagonal_matrix(bounded_exp(d)), np.ones_like(L)  # a difference in WIDE
    pattern = topology.factor_pattern
    W = dense(pattern, np.where(pattern.rows == pattern.cols, softplus(inputs), inputs))
    place = topology.inverse_order
    matrices = W @ numerics.transpose(W), abs(W) @ numerics.transpose(abs(W)), abs(W) + numerics.transpose(abs(W))
    exact, size, slope = (matrix[..., place[:, None], place] for matrix in matrices)
    return exact, size, slope


@pytest.mark.property
@given(case=cases(), seed=seeds, batch=batches, dtype=dtypes, scale=st.sampled_from([0.1, 3.0, 40.0]))
def test_a_family_is_what_its_definition_says(case, seed, batch, dtype, scale) -> None:
    name, topology = case
    family = getattr(parametrize, name)
    inputs = (scale * np.random.default_rng(seed).standard_normal((*batch, family.num_inputs(topology)))).astype(dtype)
    values = family(topology, inputs)
    assert values.dtype == dtype
    assert values.shape == (*batch, topology.precision_pattern.nnz)
    exact, size, slope = define(name, topology, inputs.astype(WIDE))
    bound = level(3, 2 * topology.n + 6, dtype) * size + (topology.n + slope) * numerics.underflow(dtype)
    packed = values_of(topology, exact)
    check(f"parametrize.{name}", type(topology).__name__, dtype, values - packed, values_of(topology, bound))


@given(case=cases(), seed=seeds, dtype=dtypes, scale=st.sampled_from([0.1, 1.0, 30.0, 1e6]))
def test_every_output_is_positive_semidefinite(case, seed, dtype, scale) -> None:
    """λ_min ≥ 0 less the rounding of the values and of LAPACK, relative to the largest magnitudes."""
    name, topology = case
    family = getattr(parametrize, name)
    inputs = (scale * np.random.default_rng(seed).standard_normal((4, family.num_inputs(topology)))).astype(dtype)
    matrix = dense(topology.precision_pattern, family(topology, inputs), symmetric=True).astype(np.float64)
    size = define(name, topology, inputs.astype(WIDE))[1].sum(axis=-1).max(axis=-1)
    tolerance = (level(3, 2 * topology.n + 6, dtype) + topology.n**2 * numerics.unit_roundoff(np.float64)) * size
    assert (np.linalg.eigvalsh(matrix)[..., 0] >= -tolerance).all()


@given(case=cases())
def test_zero_inputs_are_a_multiple_of_the_identity_and_low_ones_are_nothing(case) -> None:
    name, topology = case
    family = getattr(parametrize, name)
    inputs = np.zeros(family.num_inputs(topology))
    expected = {"semidefinite_edge": np.log(2), "gram": np.log(2) ** 2}[name]
    pattern = topology.precision_pattern
    values = family(topology, inputs)
    np.testing.assert_allclose(values, np.where(pattern.rows == pattern.cols, expected, 0.0), rtol=1e-15)
    inputs[topology.factor_pattern.diagonal if name == "gram" else slice(topology.n)] = -1e4
    assert not family(topology, inputs).any()


@given(topology=factor_free, seed=seeds)
def test_gram_reaches_what_a_factor_gives(topology: Topology, seed: int) -> None:
    """softplus⁻¹(x) = log(eˣ − 1)."""
    pattern, rng = topology.factor_pattern, np.random.default_rng(seed)
    lower = rng.standard_normal(pattern.nnz)
    lower[pattern.diagonal] = rng.uniform(0.5, 2.0, topology.n)
    inputs = np.where(pattern.rows == pattern.cols, np.log(np.expm1(abs(lower))), lower)
    np.testing.assert_allclose(parametrize.gram(topology, inputs), linalg.gram(pattern, lower), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- tensors


@every_name
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensors_give_the_numbers_of_arrays_and_have_derivatives(name, topology, dtype) -> None:
    if name == "gram" and not topology.is_factor_free:
        return
    family = getattr(parametrize, name)
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((2, family.num_inputs(topology)))).to(dtype)
    values = family(topology, inputs)
    assert values.dtype == dtype
    size = values_of(topology, define(name, topology, inputs.numpy().astype(WIDE))[1])
    error = abs(values.numpy() - family(topology, inputs.numpy()))
    assert (error <= 2 * level(3, 2 * topology.n + 6, str(inputs.numpy().dtype)) * size).all()
    if dtype == torch.float64:
        inputs.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: family(topology, x), (inputs,))
        assert torch.autograd.gradgradcheck(lambda x: family(topology, x), (inputs,))


@every_name
def test_gradients_are_finite_at_extreme_inputs_and_alive_at_zero(name) -> None:
    chain, family = Chain(3), getattr(parametrize, name)
    for at in (0.0, 50.0, -50.0, 800.0, -800.0):
        inputs = torch.full((family.num_inputs(chain),), at, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(family(chain, inputs).sum(), inputs, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), inputs)
        assert gradient.isfinite().all()
        assert second.isfinite().all()
        if at == 0.0:
            shares = 2 if name == "semidefinite_edge" else 0  # r_e has no gradient while w_e = 0
            assert (gradient[: len(gradient) - shares] != 0).all()


# ---------------------------------------------------------------------- messages


@every_name
def test_a_family_says_what_it_needs(name) -> None:
    family, need = getattr(parametrize, name), 7 if name == "semidefinite_edge" else 5
    assert family.num_inputs(Chain(3)) == need
    message = f"parametrize.{name}: inputs must end in {need}, got shape (2, 4)."
    with pytest.raises(ShapeError, match=re.escape(message)):
        family(Chain(3), np.ones((2, 4)))
    with pytest.raises(PatternError, match=rf"parametrize.{name}: topology must be a Topology, .* got Pattern"):
        family(Chain(3).factor_pattern, np.zeros(5))
    with pytest.raises(DTypeError, match=f"parametrize.{name}: inputs must be a NumPy array or a tensor, got list"):
        family(Chain(3), [0.0] * need)


def test_gram_needs_a_factor() -> None:
    with pytest.raises(PatternError, match=r"parametrize\.gram: Grid\(2, 2\) is not factor-free: .*semidefinite_edge"):
        parametrize.gram.num_inputs(Grid(2, 2))

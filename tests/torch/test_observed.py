"""Logit-normal densities and grey levels in torch: NumPy's values, gradients, torch's contract, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import biject_to

import sparseggm as sg
from sparseggm import DTypeError, NonFiniteError, NonPositiveError, ShapeError
from sparseggm.linalg.levels import levels_log_prob
from sparseggm.torch import GaussianGraphicalModel, GreyLevels, LogitNormal
from sparseggm.torch.operators import levels as operators
from sparseggm.torch.operators.registration import key_of
from tests.strategies import factor_values
from tests.topologies import topologies
from tests.torch.gaussians import gaussian, in_numpy
from tests.torch.problems import TOPOLOGIES, factor, vectors
from tests.verbs import EDGES

DTYPES = [torch.float32, torch.float64]
BATCHES = [(), (1,), (3, 2), (0,)]

each_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_kind = pytest.mark.parametrize("kind", [LogitNormal, GreyLevels])


def of_topology(topology, batch, dtype, seed=0):
    rng = np.random.default_rng(seed)
    lower = factor_values(rng, topology.factor_pattern, batch, "plain", "float64")
    loc = torch.from_numpy(rng.standard_normal((*batch, topology.n)))
    return GaussianGraphicalModel(loc.to(dtype), factor=torch.from_numpy(lower).to(dtype), topology=topology)


def uniform_of(q, *size, seed=0):
    numbers = np.random.default_rng(seed).uniform(0.01, 0.99, (*size, q.topology.n))
    return torch.from_numpy(numbers).to(q.loc.dtype)


# ---------------------------------------------------------------------- values


@settings(max_examples=30)
@given(topology=topologies(3), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES))
def test_both_have_the_values_of_numpy(topology, seed, dtype):
    """Levels to the bits of the verb, given its uniform numbers; densities to the rounding of a sum of n terms."""
    q, rng = of_topology(topology, (2,), dtype, seed), np.random.default_rng(seed)
    g, order, n = in_numpy(q), topology.order, topology.n
    x, uniform = rng.integers(0, 8, (3, 2, n)), uniform_of(q, 4, 3, 2, seed=seed)
    edges = (torch.arange(9, dtype=torch.float64) / 8).logit().numpy()
    ordered = g.loc[..., order], g.factor, x[..., order], edges, uniform.numpy()
    weights = levels_log_prob(g.factor_pattern, *ordered)
    found = GreyLevels(q, levels=8).log_prob(torch.from_numpy(x), 4, uniform=uniform)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, np.logaddexp.reduce(weights, axis=0) - np.log(4), rtol=1e-13)
    np.testing.assert_allclose(edges, EDGES, rtol=1e-14)
    y = torch.from_numpy(rng.uniform(0.01, 0.99, (3, 2, n))).to(dtype)
    density, expected = LogitNormal(q).log_prob(y), sg.LogitNormal(g).log_prob(y.numpy())
    assert density.dtype == dtype
    assert np.allclose(density, expected, rtol=0, atol=20 * torch.finfo(dtype).eps * (n + abs(expected).max()))


@each_topology
def test_means_levels_and_logits_are_those_of_numpy(topology):
    q = gaussian(topology, 2)
    model, like = GreyLevels(q, levels=8), sg.GreyLevels(in_numpy(q), levels=8)
    np.testing.assert_allclose(model.mean.detach(), like.mean(), rtol=1e-12)
    numbers = np.linspace(0, 1, 33)
    np.testing.assert_array_equal(model.levels_of(numbers), like.levels_of(numbers))
    x = torch.arange(topology.n) % 8
    z, log_weight = model.sample_logits(x, generator=torch.Generator().manual_seed(0))
    place = 8 * z.sigmoid()
    assert log_weight.shape == (2,)
    assert ((x - 1e-9 <= place) & (place <= x + 1 + 1e-9)).all()


def test_levels_are_exact_on_a_diagonal_and_ask_for_no_noise():
    q = gaussian(sg.Diagonal(5), 2)
    model, x = GreyLevels(q, levels=16), torch.arange(5)
    before = torch.get_rng_state()
    found, estimate = model.log_prob(x, 9), model.estimate_log_prob(x, 3)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(found.detach(), sg.GreyLevels(in_numpy(q), levels=16).log_prob(x.numpy()), rtol=1e-13)
    assert torch.equal(found.detach(), estimate.value)
    assert (estimate.standard_error == 0).all()


def test_an_estimate_tells_its_error():
    model = GreyLevels(gaussian(sg.ExtendedGrid(2, 3)), levels=8)
    x, noise = torch.full((400, 6), 3), torch.Generator().manual_seed(0)
    value, error = model.estimate_log_prob(x, 50, generator=noise)
    assert not value.requires_grad
    assert 0.8 < error.mean() / value.std() < 1.25  # 400 values: their spread is known to 4 %
    assert model.estimate_log_prob(x[0]).standard_error.isnan()


def test_a_generator_repeats_and_a_uniform_number_may_serve_the_batch():
    model, x = GreyLevels(gaussian(sg.Chain(4), 3)), torch.full((3, 4), 100)
    first, second = (model.log_prob(x, 2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    uniform = uniform_of(model.gaussian, 2, 1)
    assert torch.equal(model.log_prob(x, 2, uniform=uniform), model.log_prob(x, 2, uniform=uniform.expand(2, 3, 4)))


@each_dtype
def test_uniform_numbers_are_never_zero_or_one(dtype, monkeypatch):
    """torch.rand has k 2⁻²⁴ or k 2⁻⁵³ in [0, 1)."""
    model = GreyLevels(of_topology(sg.Chain(2), (), dtype))
    most = 1 - torch.finfo(dtype).eps / 2
    for number in (0.0, most):
        monkeypatch.setattr(
            torch, "rand", lambda size, number=number, **of: torch.full(size, number, dtype=of["dtype"])
        )
        uniform = model._uniform((3,), None)
        assert uniform.dtype == dtype
        assert ((uniform > 0) & (uniform < 1)).all()


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64], ids=str
)
def test_levels_of_every_integer_dtype(dtype):
    model, x = GreyLevels(gaussian(sg.Grid(2, 2)), levels=100), torch.tensor([0, 99, 3, 50])
    uniform = uniform_of(model.gaussian, 1)
    assert torch.equal(model.log_prob(x.to(dtype), uniform=uniform), model.log_prob(x.numpy(), uniform=uniform))


# ---------------------------------------------------------------------- gradients


def problem(topology, loc_batch, factor_batch, x_batch):
    full = torch.broadcast_shapes(loc_batch, factor_batch, x_batch)
    loc, lower = vectors(topology.n, *loc_batch), factor(topology.factor_pattern, *factor_batch)
    x = (4 + 2 * vectors(topology.n, *x_batch, seed=2).detach()).long().clamp(0, 7)
    uniform = torch.from_numpy(np.random.default_rng(1).uniform(0.05, 0.95, (2, *full, topology.n)))

    def levels(loc, lower):
        q = GaussianGraphicalModel(loc, factor=lower, topology=topology, validate_args=False)
        return GreyLevels(q, levels=8).log_prob(x, 2, uniform=uniform)

    def density(loc, lower, y):
        q = GaussianGraphicalModel(loc, factor=lower, topology=topology, validate_args=False)
        return LogitNormal(q).log_prob(y)

    return levels, density, loc, lower, vectors(topology.n, *x_batch, seed=3).detach().sigmoid().requires_grad_()


SHAPES = [((), (), ()), ((3, 4), (), (3, 4)), ((), (), (5,)), ((2, 1), (3,), ())]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("topology", [sg.Grid(2, 2), sg.ExtendedGrid(2, 2)], ids=str)
def test_gradients_agree_with_differences(topology, shapes):
    levels, density, loc, lower, y = problem(topology, *shapes)
    assert torch.autograd.gradcheck(levels, (loc, lower), fast_mode=True)
    assert torch.autograd.gradcheck(density, (loc, lower, y), fast_mode=True)


@each_topology
def test_gradients_agree_with_differences_on(topology):
    levels, _, loc, lower, _ = problem(topology, (2,), (2,), (2,))
    assert torch.autograd.gradcheck(levels, (loc, lower))


def test_the_expected_level_can_be_differentiated():
    topology = sg.Chain(3)

    def mean(loc, lower):
        return GreyLevels(GaussianGraphicalModel(loc, factor=lower, topology=topology), levels=4).mean

    assert torch.autograd.gradcheck(mean, (vectors(3), factor(topology.factor_pattern)))


def test_a_second_derivative_is_refused_and_so_are_those_that_are_not_there():
    levels, _, loc, lower, _ = problem(sg.Chain(3), (2,), (2,), (2,))
    (first,) = torch.autograd.grad(levels(loc, lower).sum(), loc, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"^levels_log_prob: can be differentiated once"):
        first.sum().backward()
    with pytest.raises(NotImplementedError, match=r"^levels_log_prob: can be differentiated once"):
        torch.func.jacrev(torch.func.jacrev(lambda a: levels(a, lower.detach()).sum()))(loc.detach())
    model, x = GreyLevels(gaussian(sg.Chain(3))), torch.zeros(3, dtype=torch.long)
    with pytest.raises(NotImplementedError, match=r"edges and uniform, of which one asks for a gradient. Detach it"):
        model.log_prob(x, uniform=torch.full((1, 3), 0.5, dtype=torch.float64, requires_grad=True))
    z, _ = operators.sample_in_levels(sg.Chain(3).factor_pattern, *model._arguments(x), uniform_of(model.gaussian))
    with pytest.raises(NotImplementedError, match="sample_in_levels: has no gradient"):
        z.sum().backward()


@each_dtype
@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("loc", [-50.0, 0.0, 50.0])
def test_nothing_is_nan_at_extreme_parameters(loc, level, dtype):
    topology = sg.ExtendedGrid(2, 3)
    diagonal = torch.from_numpy(topology.factor_pattern.rows == topology.factor_pattern.cols)
    scales = torch.logspace(-3, 6, 10, dtype=dtype)[:, None]
    lower = torch.where(diagonal, scales, 0.3 * scales).requires_grad_()
    mean = torch.full((10, 6), loc, dtype=dtype, requires_grad=True)
    model = GreyLevels(GaussianGraphicalModel(mean, factor=lower, topology=topology))
    log_prob = model.log_prob(torch.full((6,), level), 3, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(log_prob.sum(), (mean, lower))
    assert all(tensor.isfinite().all() for tensor in (log_prob, *gradients))
    assert (log_prob <= 0).all()


def test_an_infinite_cotangent_passes():
    levels, _, loc, lower, _ = problem(sg.Chain(3), (2,), (2,), (2,))
    (found,) = torch.autograd.grad(levels(loc, lower), loc, torch.tensor([1.0, torch.inf], dtype=torch.float64))
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


# ---------------------------------------------------------------------- the dispatcher, and transforms


def test_operators_keep_the_contract_of_the_dispatcher():
    pattern = sg.ExtendedGrid(2, 3).factor_pattern
    loc, lower = vectors(6, 2), factor(pattern)
    x, uniform = torch.arange(6) % 8, torch.full((3, 2, 6), 0.3, dtype=torch.float64)
    arguments = key_of(pattern, "test"), loc, lower, x, torch.from_numpy(EDGES.copy()), uniform
    torch.library.opcheck(torch.ops.sparseggm.levels_log_prob.default, arguments)
    fixed = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.library.opcheck(torch.ops.sparseggm.levels_log_prob_and_gradients.default, tuple(fixed))
    torch.library.opcheck(torch.ops.sparseggm.sample_in_levels.default, tuple(fixed))


@pytest.mark.parametrize("which", [0, 1], ids=["levels", "density"])
def test_compiled_is_eager(which):
    *functions, loc, lower, y = problem(sg.Grid(2, 3), (3,), (3,), (3,))
    inputs = (loc, lower, y)[: 2 + which]
    eager = run(functions[which], inputs)  # derives what the topology needs
    torch._dynamo.reset()
    compiled = torch.compile(functions[which], fullgraph=True, backend="aot_eager")
    for of_compiled, of_eager in zip(run(compiled, inputs), eager, strict=True):
        assert torch.equal(of_compiled, of_eager)


def run(function, inputs):
    result = function(*inputs)
    return result.detach(), *torch.autograd.grad(result.sum(), inputs)


def test_noise_is_made_inside_a_compiled_function():
    def loss(loc):
        q = GaussianGraphicalModel(loc, factor=lower, topology=topology, validate_args=False)
        return GreyLevels(q).log_prob(torch.full((4,), 9), 2).sum()

    topology, loc = sg.Chain(4), vectors(4, 3).detach()
    lower = factor(topology.factor_pattern).detach()
    assert loss(loc) != loss(loc)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert compiled(loc) != compiled(loc)


def test_vmap_of_values_and_gradients_is_the_loop():
    levels, _, loc, lower, _ = problem(sg.ExtendedGrid(2, 2), (2,), (2,), (2,))
    stacked = tuple(torch.stack([tensor, 1.25 * tensor]).detach() for tensor in (loc, lower))
    gradient = torch.func.grad(lambda *tensors: levels(*tensors).sum(), argnums=(0, 1))
    for of_vmap, *looped in zip(
        torch.func.vmap(gradient)(*stacked), *(gradient(*each) for each in zip(*stacked, strict=True)), strict=True
    ):
        torch.testing.assert_close(of_vmap, torch.stack(looped), rtol=1e-13, atol=1e-13)
    looped = torch.stack([levels(*each) for each in zip(*stacked, strict=True)])
    torch.testing.assert_close(torch.func.vmap(levels)(*stacked), looped, rtol=1e-13, atol=1e-13)


# ---------------------------------------------------------------------- torch's contract


@each_kind
@each_dtype
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_shapes_and_samples_keep_torchs_contract(kind, batch, dtype):
    model = kind(of_topology(sg.ExtendedGrid(2, 3), batch, dtype))
    assert (model.batch_shape, model.event_shape) == (batch, (6,))
    x = model.sample((4, 1))
    assert x.shape == (4, 1, *batch, 6)
    if x.numel():  # torch's own check reshapes to −1, which is refused without entries
        assert model.support.check(x).all()
        assert model.support.check(x).shape == x.shape[:-1]
    log_prob = model.log_prob(x)
    assert log_prob.shape == (4, 1, *batch)
    assert repr(model).startswith(f"{kind.__name__}(GaussianGraphicalModel(ExtendedGrid")
    wider = model.expand((5, *batch))
    assert (type(wider), wider.batch_shape, wider.support.event_dim) == (kind, (5, *batch), 1)
    assert wider.log_prob(x[0]).shape == (5, *batch)
    assert wider.gaussian._factor is model.gaussian._factor


def test_support_is_open_and_has_a_bijection():
    support = LogitNormal(gaussian(sg.Chain(3))).support
    assert support.check(torch.tensor([[0.1, 0.2, 0.9], [0.1, 0.0, 0.9], [0.1, 1.0, 0.9]])).tolist() == [
        True,
        False,
        False,
    ]
    assert support.check(biject_to(support)(torch.randn(5, 3))).all()
    levels = GreyLevels(gaussian(sg.Chain(3)), levels=4).support
    assert levels.is_discrete
    assert levels.check(torch.tensor([[0, 3, 1], [0, 4, 1], [-1, 3, 1]])).tolist() == [True, False, False]


@each_dtype
def test_samples_of_a_density_are_inside_however_wide_it_is(dtype):
    wide = GaussianGraphicalModel(torch.zeros(3, dtype=dtype), factor=torch.full((3,), 1e-4), topology=sg.Diagonal(3))
    model = LogitNormal(wide)
    x = model.sample((100,))
    assert model.support.check(x).all()
    assert model.log_prob(x).isfinite().all()


def test_samples_have_the_gradient_of_the_sigmoid():
    q = gaussian(sg.Chain(4), 2)
    torch.manual_seed(0)
    z = q.rsample((3,))
    torch.manual_seed(0)
    x = LogitNormal(q).rsample((3,))
    assert torch.equal(x, z.sigmoid())
    (of_x,) = torch.autograd.grad(x.sum(), q.loc)
    (of_z,) = torch.autograd.grad(z.sigmoid().sum(), q.loc)
    assert torch.equal(of_x, of_z)


def test_frequencies_of_levels_are_their_means():
    model = GreyLevels(gaussian(sg.Grid(2, 2)), levels=8)
    torch.manual_seed(0)
    x = model.sample((20_000,)).double()
    assert (abs(x.mean(0) - model.mean) <= 4 * x.std(0) / len(x) ** 0.5).all()


def test_conditioning_on_pixels_is_conditioning_on_their_logits():
    q, values = gaussian(sg.ExtendedGrid(2, 3)), torch.tensor([0.2, 0.9], dtype=torch.float64)
    found, expected = LogitNormal(q).condition([1, 4], values), q.condition([1, 4], values.logit())
    assert torch.equal(found.gaussian.loc, expected.loc)
    assert torch.equal(found.gaussian.factor, expected.factor)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_the_density_has_no_ends(bad):
    x = torch.tensor([0.5, bad])
    message = r"numbers must be in \(0, 1\), got .* Move 0 and 1 inside"
    with pytest.raises(ValueError, match=rf"^LogitNormal\.log_prob: {message}"):
        LogitNormal(gaussian(sg.Chain(2)), validate_args=True).log_prob(x)
    with pytest.raises(ValueError, match=rf"^LogitNormal\.condition: {message}"):
        LogitNormal(gaussian(sg.Chain(3)), validate_args=True).condition([0, 1], x)
    with pytest.raises(NonFiniteError, match="value must be finite"):
        LogitNormal(gaussian(sg.Chain(2)), validate_args=False).log_prob(x)


def test_what_levels_refuse():
    model, fine = GreyLevels(gaussian(sg.Chain(3), 2)), torch.zeros(2, 3, dtype=torch.uint8)
    for bad, error, message in (
        ([0, 256, 3], ValueError, r"levels must be in 0 … 255, got 0 … 256"),
        ([0.0, 1.0, 2.0], DTypeError, r"levels must be integers, got torch.float32"),
        ([True, False, True], DTypeError, r"levels must be integers, got torch.bool"),
        ([0, 1], ShapeError, r"x must end in 3, the pixels of Chain\(n=3\), got shape \(2,\)"),
        ([[0, 1, 2]] * 3, ShapeError, r"batch axes must broadcast, got \(3,\) of x and \(2,\) of gaussian"),
    ):
        with pytest.raises(error, match=rf"^GreyLevels\.log_prob: {message}"):
            model.log_prob(torch.tensor(bad))
    with pytest.raises(ValueError, match=r"num_samples must be an integer of at least 1"):
        model.log_prob(fine, num_samples=0)
    with pytest.raises(ValueError, match=r"^GreyLevels: levels must be an integer of at least 2, got 1"):
        GreyLevels(gaussian(sg.Chain(3)), levels=1)
    for shape in ((2, 3), (1, 2, 4), (2, 2, 3), (1, 3, 3)):
        with pytest.raises(ShapeError, match=r"uniform must have the shape \(1, 2, 3\) of samples, batch and pixels"):
            model.log_prob(fine, uniform=torch.full(shape, 0.5))
    with pytest.raises(ValueError, match=r"uniform must be in \(0, 1\), in torch.float64, got 1.0"):
        model.log_prob(fine, uniform=torch.ones(1, 2, 3))


def test_a_bad_parameter_is_named_by_batch_element_and_pixel_though_it_was_not_validated():
    topology = sg.Grid(2, 3)
    loc, lower = vectors(6, 3).detach(), factor(topology.factor_pattern, 3).detach()
    x = torch.zeros(3, 6, dtype=torch.long)

    def model(loc, lower):
        return GreyLevels(GaussianGraphicalModel(loc, factor=lower, topology=topology, validate_args=False))

    bad, negative = loc.clone(), lower.clone()
    bad[1, 4], negative[2, topology.factor_pattern.diagonal.copy()] = torch.nan, -1.0
    with pytest.raises(NonFiniteError, match=r"^GreyLevels\.log_prob: loc must be finite, got nan at node 4 .*\(1,\)"):
        model(bad, lower).log_prob(x)
    with pytest.raises(NonFiniteError, match=r"^GreyLevels\.sample_logits: loc must be finite, got nan at node 4"):
        model(bad, lower).sample_logits(x)
    with pytest.raises(NonPositiveError, match=r"^GreyLevels\.log_prob: the diagonal of factor must be positive"):
        model(loc, negative).log_prob(x)


@pytest.mark.parametrize("level", [-1, 256, 257, 258])
def test_levels_out_of_range_raise_where_values_cannot_be_read_before(level):
    """257 is the operator's own level of a missing pixel."""
    model = GreyLevels(gaussian_of(sg.Diagonal(1)))
    with pytest.raises(sg.ShapeError, match="levels must be in 0"):
        torch.func.vmap(model.log_prob)(torch.tensor([[255], [level]]))


def gaussian_of(topology):
    n, nnz = topology.n, topology.factor_pattern.nnz
    return GaussianGraphicalModel(torch.zeros(n), factor=torch.ones(nnz), topology=topology)


def test_levels_of_a_reversed_array_are_those_of_its_copy():
    model, x = GreyLevels(gaussian_of(sg.Diagonal(3))), np.array([3, 2, 0])
    assert model.log_prob(x[::-1]) == model.log_prob(x[::-1].copy())


@pytest.mark.parametrize("kind", [LogitNormal, GreyLevels])
def test_a_gaussian_of_arrays_is_refused_by_name(kind):
    g = sg.GaussianGraphicalModel(np.zeros(2), factor=np.ones(3), topology=sg.Chain(2))
    message = rf"^{kind.__name__}: gaussian must be a GaussianGraphicalModel, got one of arrays: use from_numpy\."
    with pytest.raises(TypeError, match=message):
        kind(g)


@pytest.mark.parametrize("levels", [2, 3, 10, 100, 256, 1_000])
def test_a_level_begins_where_it_is_said_to(levels):
    """Lists keep the digits of their numbers, and k/K is in level k whatever the product with K is rounded to."""
    q = gaussian_of(sg.Diagonal(2))
    begin = [k / levels for k in range(levels)]
    for model in (GreyLevels(q, levels=levels), sg.GreyLevels(q.numpy(), levels=levels)):
        np.testing.assert_array_equal(model.levels_of(begin), np.arange(levels))
        np.testing.assert_array_equal(model.levels_of(np.nextafter(begin[1:], 0)), np.arange(levels - 1))
        assert model.levels_of(1.0) == levels - 1


def test_conditioning_on_a_list_takes_the_dtype_of_the_gaussian():
    q = GaussianGraphicalModel(torch.zeros(3).double(), factor=torch.ones(5).double(), topology=sg.Chain(3))
    for values in ([0.3], np.array([0.3])[::-1], np.array([0.3], ">f8")):
        found = LogitNormal(q).condition([0], values).gaussian.loc
        np.testing.assert_allclose(
            found.detach(), sg.LogitNormal(q.numpy()).condition([0], [0.3]).gaussian.loc, rtol=1e-12
        )


@pytest.mark.parametrize("limit", [None, "30", float("nan")])
def test_a_limit_that_is_no_number_is_refused(limit):
    q = gaussian_of(sg.Diagonal(2))
    for kind, g in ((GreyLevels, q), (sg.GreyLevels, q.numpy())):
        with pytest.raises(ValueError, match=r"GreyLevels: limit must be above 5\.541"):
            kind(g, limit=limit)


def test_arrays_that_run_backwards_are_taken_beside_levels():
    model, whole = GreyLevels(gaussian_of(sg.Chain(3))), np.array([[3, 2, 1], [True, False, False]])
    levels, missing, uniform = whole[0].astype(">i4")[::-1], whole[1].astype(bool)[::-1], np.full((1, 3), 0.3)[:, ::-1]
    found = model.log_prob(levels, missing=missing, uniform=uniform)
    same = model.log_prob(torch.tensor([1, 2, 3]), missing=torch.tensor([False, False, True]), uniform=[[0.3] * 3])
    assert found == same


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf, 1.5])
def test_levels_of_no_number_between_zero_and_one_are_refused(bad):
    with pytest.raises(ValueError, match=r"levels_of: numbers must be in \[0, 1\], got"):
        GreyLevels(gaussian_of(sg.Diagonal(2))).levels_of(torch.tensor([0.5, bad]))


def test_missing_pixels_and_limits_are_those_of_arrays():
    topology = sg.ExtendedGrid(2, 3)
    g = sg.GaussianGraphicalModel(np.linspace(-1, 1, 6), factor=np.linspace(1, 2, 13), topology=topology)
    q = GaussianGraphicalModel(
        torch.from_numpy(g.loc.copy()), factor=torch.from_numpy(g.factor.copy()), topology=topology
    )
    x, missing = np.array([0, 1, 2, 3, 2, 1]), np.arange(6) < 3
    uniform = torch.from_numpy(np.random.default_rng(0).uniform(size=(4000, 6)))
    for limit in (math.inf, 4.0):
        expected = sg.GreyLevels(g, 4, limit).estimate_log_prob(x, 4000, rng=1, missing=missing)
        model = GreyLevels(q, 4, limit)
        found = model.log_prob(x, 4000, uniform=uniform, missing=torch.from_numpy(missing))
        assert abs(found.item() - expected.value) <= 6 * expected.standard_error
        z, _ = model.sample_logits(torch.from_numpy(x), missing=torch.from_numpy(missing))
        assert torch.equal(model.levels_of(z.double().sigmoid())[3:], torch.from_numpy(x)[3:])
    with pytest.raises(sg.ShapeError, match="missing must be booleans that end in 6"):
        GreyLevels(q, 4).log_prob(x, missing=torch.zeros(6))

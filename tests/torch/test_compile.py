"""`torch.compile(fullgraph=True)` of every operator: equal to eager, forward and backward, and for any batch size."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import scipy.sparse
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributions import Independent, Normal, kl_divergence
from torch.func import grad, jacrev, vmap

import sparseggm as sg
from sparseggm.torch import FactorHead, GaussianGraphicalModel, GreyLevels, kl_terms, ops, sample_and_kl
from sparseggm.torch.operators import step as fused
from tests import signatures
from tests.torch.problems import calls, factor, vectors
from tests.verbs import VERBS, arguments

every_operator = pytest.mark.parametrize("name", list(calls(sg.Chain(4))))

EVERY_FAMILY = [
    *(sg.Diagonal(3), sg.Chain(4), sg.Band(5, 2), sg.BlockChain(2, 2), sg.ExtendedGrid(2, 3), sg.Stencil(2, 3, 1)),
    *(sg.Grid(2, 3), sg.Torus(3, 3), sg.Tree([-1, 0, 0]), sg.Star(4), sg.Cycle(4), sg.Graph(4, [(3, 0), (1, 0)])),
]


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()


def compiled(function, backend="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def value_and_gradients(function, arguments):
    arguments = [argument.detach().clone().requires_grad_() for argument in arguments]
    result = function(*arguments)
    cotangent = torch.linspace(-1.0, 1.0, result.numel(), dtype=result.dtype).reshape(result.shape)
    return (result.detach(), *torch.autograd.grad(result, arguments, cotangent))


@every_operator
@pytest.mark.parametrize(
    ("topology", "dtype"), [(sg.ExtendedGrid(2, 3), torch.float64), (sg.Grid(3, 3), torch.float32)], ids=str
)
def test_compiled_equals_eager_to_the_bit(topology, name, dtype):
    call = calls(topology)[name]
    arguments = [argument.detach().to(dtype) for argument in call.arguments]
    found = value_and_gradients(compiled(call.operator), arguments)
    for of_compiled, of_eager in zip(found, value_and_gradients(call.operator, arguments), strict=True):
        assert torch.equal(of_compiled, of_eager)


@every_operator
def test_one_compilation_serves_every_batch_size(name):
    call = calls(sg.ExtendedGrid(2, 3))[name]
    first, *others = (argument.detach() for argument in call.arguments)
    counter = CompileCounterWithBackend("aot_eager")

    if name == "outer, summed to the batch of L":
        pattern = sg.ExtendedGrid(2, 3).factor_pattern

        def function(x, y):
            return ops.outer(pattern, x, y, y.shape[:-1])
    else:
        function = call.operator

    dynamic = compiled(function, backend=counter, dynamic=True)
    for count in (2, 4, 5):  # not 3, the other batch axis: equal sizes may be compiled anew
        arguments = [torch.cat([argument[..., :1, :]] * count, -2) for argument in (first, *others)]
        found = value_and_gradients(dynamic, arguments)
        for of_compiled, of_eager in zip(found, value_and_gradients(function, arguments), strict=True):
            assert torch.equal(of_compiled, of_eager)
    assert counter.frame_count == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["solve_t", "logdet"])
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # inductor's own import
def test_inductor_equals_eager(name):
    """The arithmetic around the operators may be fused, and rounds in another order."""
    call = calls(sg.ExtendedGrid(2, 3))[name]
    function = compiled(call.operator, "inductor", options={"compile_threads": 1})
    found = value_and_gradients(function, call.arguments)
    for of_compiled, of_eager in zip(found, value_and_gradients(call.operator, call.arguments), strict=True):
        torch.testing.assert_close(of_compiled, of_eager, rtol=1e-14, atol=1e-14)


def test_a_pattern_that_nothing_was_derived_from_can_be_traced():
    n = 11  # of no other test
    pattern = sg.Pattern.from_edges(n, [(0, 7), (1, 8), (0, 9), (3, 10)])
    assert "_filled" not in vars(pattern)
    lower = factor(pattern, 2)
    diagonal = compiled(lambda values: ops.diagonal(pattern.filled(), ops.selected_inverse(pattern, values)))
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"derived\.__get__"):  # as docs/limits.md says
        diagonal(lower)
    inverse = value_and_gradients(compiled(lambda values: ops.selected_inverse(pattern, values)), [lower])
    variances = value_and_gradients(compiled(lambda values: ops.marginal_variances(pattern, values)), [lower])
    np.testing.assert_array_equal(ops.diagonal(pattern.filled(), inverse[0]), variances[0])


def test_kernels_take_a_pattern_that_was_traced_as_they_took_it_before():
    """A tracer makes the NumPy arrays that it meets writable, for which Numba would compile every kernel again."""
    pattern = sg.Grid(3, 4).precision_pattern
    given = {name: arguments(verb, verb.on(pattern), 1, (40,)) for name, verb in VERBS.items()}

    def results():
        return [verb(verb.on(pattern), given[name]) for name, verb in VERBS.items()]

    expected, before = results(), signatures.compiled()
    for met in (pattern, pattern.filled(), pattern.gram()):
        compiled(lambda values, met=met: values * met.nnz)(torch.ones(2))
    for found, value in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    assert signatures.compiled() == before


@pytest.mark.parametrize("topology", EVERY_FAMILY, ids=str)
def test_without_fullgraph_a_new_topology_breaks_the_graph_and_is_what_it_is_in_eager_code(topology):
    """Nothing of NumPy's is traced: torch would put tensors of its own in the place of a pattern's arrays."""
    eager, new = (copy.copy(topology) for _ in range(2))
    pattern, order = eager.factor_pattern, eager.inverse_order
    lower, x = factor(pattern).detach(), vectors(eager.n).detach()
    assert not {"factor_pattern", "order"} & vars(new).keys()

    def function(topology):
        pattern = topology.factor_pattern
        return ops.diagonal(pattern, lower) + ops.solve_t(pattern, lower, x), topology.inverse_order

    found, found_order = torch.compile(function, backend="aot_eager")(new)
    assert torch.equal(found, function(eager)[0])
    assert new.factor_pattern is pattern
    np.testing.assert_array_equal(found_order, order)
    assert not found_order.flags.writeable


def test_a_function_that_has_run_once_is_traced_whole():
    pattern = sg.Chain(23).factor_pattern
    lower = factor(pattern).detach()
    expected = ops.diagonal(pattern, lower)
    assert torch.equal(compiled(lambda values: ops.diagonal(pattern, values))(lower), expected)


def test_another_pattern_is_another_compilation():
    """The key is a constant of the graph, and guarded."""
    chain, tree = sg.Chain(4).factor_pattern, sg.Star(4).factor_pattern
    assert chain.nnz == tree.nnz
    lower, x = factor(chain).detach(), vectors(4).detach()
    solve_t = compiled(lambda pattern, values: ops.solve_t(pattern, values, x))
    for pattern in (chain, tree):
        assert torch.equal(solve_t(pattern, lower), ops.solve_t(pattern, lower, x))


def test_a_compiled_training_step_equals_the_eager_one():
    head, features = FactorHead(5, sg.ExtendedGrid(2, 3)), torch.linspace(-1.0, 1.0, 15).reshape(3, 5)
    noise = torch.linspace(-2.0, 2.0, 18).reshape(3, 6)

    def step(features):
        z, kl = sample_and_kl(head(features), noise=noise)
        return z.square().sum() + kl.sum()

    step(features)  # derives what the topology needs
    losses, gradients = [], []
    for function in (step, compiled(step)):
        head.zero_grad()
        loss = function(features)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad.clone() for parameter in head.parameters()])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_the_training_step_compiles_for_every_batch_size():
    pattern, counter = sg.ExtendedGrid(2, 3).factor_pattern, CompileCounterWithBackend("aot_eager")

    def loss(loc, lower, noise):
        z, kl = fused.sample_and_kl(pattern, loc, lower, noise)
        return z.square().sum() + kl.sum()

    dynamic = compiled(loss, counter, dynamic=True)
    for count in (2, 3, 5):
        arguments = [vectors(6, count), factor(pattern, count), vectors(6, 4, count, seed=1)]
        found, expected = value_and_gradients(dynamic, arguments), value_and_gradients(loss, arguments)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "transform", [vmap, grad, jacrev, lambda f: vmap(grad(f))], ids=["vmap", "grad", "jacrev", "both"]
)
def test_a_transform_inside_compiled_code_is_that_of_eager(transform):
    pattern = sg.ExtendedGrid(2, 3).factor_pattern
    lower, x = factor(pattern, 2).detach(), vectors(6, 2).detach()

    def loss(values, samples):
        return ops.solve_t(pattern, values, samples).square().sum() + ops.trace_inverse(pattern, values).sum()

    function = transform(loss)
    assert torch.equal(compiled(function)(lower, x), function(lower, x))


CHAIN = sg.Chain(6)
SHARED = factor(CHAIN.factor_pattern).detach()


def about(loc):
    """Gaussians that share a factor."""
    return GaussianGraphicalModel(loc, factor=SHARED, topology=CHAIN)


STANDARD = Independent(Normal(torch.zeros(6).double(), torch.ones(6).double()), 1)


def test_grey_levels_with_numbers_of_their_own_compile_for_every_batch_size():
    def log_prob(loc):
        return GreyLevels(about(loc), 4).log_prob(torch.ones(6, dtype=torch.long), 2)

    function = compiled(log_prob)
    for count in (8, 5, 3):
        torch.manual_seed(0)
        expected = log_prob(vectors(6, count).detach())  # before, so that all is derived
        torch.manual_seed(0)
        torch.testing.assert_close(function(vectors(6, count).detach()), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("transform", [grad, lambda f: vmap(grad(f))], ids=["grad", "both"])
@pytest.mark.parametrize(
    "answer",
    [lambda q: q.log_prob(torch.ones(6).double()), lambda q: kl_divergence(q, STANDARD), lambda q: q.variance.sum()],
    ids=["log_prob", "kl", "variance"],
)
def test_a_gaussian_made_inside_a_transform_in_compiled_code_is_that_of_eager(transform, answer):
    function = transform(lambda loc: answer(about(loc)))
    loc = vectors(6).detach() if transform is grad else vectors(6, 3).detach()
    expected = function(loc)  # before, so that all is derived
    torch.testing.assert_close(compiled(function)(loc), expected, rtol=1e-13, atol=1e-13)


def test_divergences_compile_whole_after_a_sample_and_beside_a_shared_factor():
    q = about(vectors(6, 3))
    assert (kl_divergence(q, STANDARD) > 0).all()  # once, so that all is derived
    q.rsample()
    function = compiled(lambda q: kl_divergence(q, STANDARD))
    torch.testing.assert_close(function(q), kl_divergence(q, STANDARD), rtol=1e-13, atol=1e-13)

    def terms(loc):
        return kl_terms(about(loc), about(2.0 * loc))

    loc = vectors(6, 4).detach()
    expected = terms(loc)
    torch.testing.assert_close(compiled(terms)(loc), expected, rtol=1e-13, atol=1e-13)


PAIRS = [(0, 1), (2, 7)]
INFERENCE = {
    "observe": lambda q, one: q.observe([1, 5], one, 0.5).precision,
    "observe through a matrix": lambda q, one: q.observe(scipy.sparse.eye_array(q.n).tocsr()[[1, 5]], one, 0.5).loc,
    "log_evidence": lambda q, one: q.log_evidence([1, 5], one, 0.5),
    "condition": lambda q, one: q.condition([3, 1], one).loc,
    "marginal": lambda q, one: q.marginal([3, 1]).factor,
    "covariance_on": lambda q, one: q.covariance_on(PAIRS),
    "correlation_on": lambda q, one: q.correlation_on(PAIRS),
    "precision_matrix": lambda q, one: q.precision_matrix,
    "covariance_matrix": lambda q, one: q.covariance_matrix,
    "log_normaliser": lambda q, one: q.log_normaliser(),
    "product": lambda q, one: q.product(q.moved_to(torch.ones(q.n))).loc,
}


@pytest.mark.parametrize("name", INFERENCE)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, where a graph breaks
def test_without_fullgraph_inference_is_what_it_is_in_eager_code(name):
    """As docs/limits.md says; nothing warns that the library could help."""
    grid, one = sg.Grid(3, 4), torch.ones(2, dtype=torch.float64)
    P = grid.pack((torch.full((12,), 5.0).double(), torch.full((17,), -1.0).double())).requires_grad_()

    def function(P):
        return INFERENCE[name](GaussianGraphicalModel.from_precision(torch.zeros(12), precision=P, topology=grid), one)

    found, expected = (value_and_gradients(call, [P]) for call in (torch.compile(function, backend="eager"), function))
    for of_compiled, of_eager in zip(found, expected, strict=True):
        assert torch.equal(of_compiled, of_eager)

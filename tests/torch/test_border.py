"""What a caller may give the torch Gaussian, and is told: one list of calls for every kind of value and of mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import sparseggm as sg
from sparseggm import parametrize
from sparseggm.torch import (
    ConvHead,
    FactorHead,
    GaussianGraphicalModel,
    PrecisionHead,
    geometry,
    natural_step,
    precondition,
    refine,
    sample_and_kl,
)

TOPOLOGY = sg.Star(4)  # eliminated in another order than it is numbered; 7 stored entries
N, NNZ = 4, 7
Q = GaussianGraphicalModel


def model(dtype: torch.dtype = torch.float32, *batch: int, **options: Any) -> Q:
    lower = torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 4.0]).expand(*batch, NNZ)  # exact in every dtype
    loc = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(*batch, N)
    return Q(loc.to(dtype), factor=lower.to(dtype), topology=TOPOLOGY, **options)


@dataclass(frozen=True)
class Call:
    """A method of a Gaussian q and a caller's value: its name in messages, and the argument's name and length."""

    function: str
    argument: str
    of: Callable[[Q, Any], Any]
    size: int = N


def parameters(q: Q) -> tuple[Tensor, Tensor]:
    return q.loc, q.factor


def several(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


CALLS = {
    "constructor, loc": Call(
        "GaussianGraphicalModel", "loc", lambda q, v: parameters(Q(v, factor=q.factor, topology=TOPOLOGY))
    ),
    "constructor, factor": Call(
        "GaussianGraphicalModel", "factor", lambda q, v: parameters(Q(q.loc, factor=v, topology=TOPOLOGY)), NNZ
    ),
    "from_precision, loc": Call(
        "GaussianGraphicalModel.from_precision",
        "loc",
        lambda q, v: parameters(Q.from_precision(v, precision=q.precision, topology=TOPOLOGY)),
    ),
    "from_precision, precision": Call(
        "GaussianGraphicalModel.from_precision",
        "precision",
        lambda q, v: parameters(Q.from_precision(q.loc, precision=v, topology=TOPOLOGY)),
        NNZ,
    ),
    "from_information": Call(
        "GaussianGraphicalModel.from_information",
        "information",
        lambda q, v: parameters(Q.from_information(v, precision=q.precision, topology=TOPOLOGY)),
    ),
    "moved_to": Call("moved_to", "loc", lambda q, v: parameters(q.moved_to(v))),
    "whiten": Call("whiten", "d", lambda q, v: q.whiten(v)),
    "colorize": Call("colorize", "eps", lambda q, v: q.colorize(v)),
    "log_prob": Call("log_prob", "value", lambda q, v: q.log_prob(v)),
    "rsample_and_log_prob": Call("rsample_and_log_prob", "noise", lambda q, v: q.rsample_and_log_prob(noise=v)),
    "sample_and_kl": Call("sample_and_kl", "noise", lambda q, v: sample_and_kl(q, noise=v)),
    "sample_and_kl, sampled": Call("sample_and_kl", "noise", lambda q, v: sample_and_kl(q, noise=v, kl="sampled")),
    "sample_and_kl, a prior": Call("sample_and_kl", "noise", lambda q, v: sample_and_kl(q, q.moved_to(2 * q.loc), v)),
    "condition": Call("condition", "values", lambda q, v: parameters(q.condition([3, 0, 1], v)), 3),
}
POSITIVE = [1, 1, 1, 1, 1, 1, 5]
"""Whole numbers, that any dtype holds, and that are a factor and a precision too."""

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)

# ---------------------------------------------------------------------- kinds of values


class Frame:
    """As a data frame: no array, but turned into one."""

    def __init__(self, values: list[int]) -> None:
        self.values = np.array(values, np.float64)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values.astype(dtype or np.float64)


def read_only(values: list[int]) -> Any:
    array = np.array(values, np.float32)
    array.flags.writeable = False
    return array


WEAK = None  # takes the dtype of the model
KINDS: dict[str, tuple[Callable[[list[int]], Any], torch.dtype | None]] = {
    **{
        str(dtype): (lambda values, dtype=dtype: torch.tensor(values, dtype=dtype), counts_as)
        for dtype, counts_as in {
            torch.float64: torch.float64,
            torch.float32: torch.float32,
            torch.float16: torch.float32,
            torch.bfloat16: torch.float32,
            torch.int64: WEAK,
            torch.uint8: WEAK,
        }.items()
    },
    "a list": (list, WEAK),
    "a list of floats": (lambda values: [float(value) for value in values], WEAK),
    "a tuple": (tuple, WEAK),
    "numpy float64": (lambda values: np.array(values, np.float64), torch.float64),
    "numpy float32": (lambda values: np.array(values, np.float32), torch.float32),
    "numpy float16": (lambda values: np.array(values, np.float16), torch.float32),
    "numpy integers": (np.array, WEAK),
    "numpy, read-only": (read_only, torch.float32),
    "numpy, of the other byte order": (lambda values: np.array(values, np.dtype("f8").newbyteorder()), torch.float64),
    "a data frame": (Frame, torch.float64),
}


@every_call
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_kind_of_value_is_taken_and_the_widest_float_wins(call, kind, dtype):
    convert, own = KINDS[kind]
    values = POSITIVE[-call.size :]
    expected_dtype = torch.float64 if torch.float64 in (dtype, own) else torch.float32
    found = call.of(model(dtype), convert(values))
    expected = call.of(model(expected_dtype), torch.tensor(values, dtype=expected_dtype))
    for of_kind, of_tensor in zip(several(found), several(expected), strict=True):
        assert of_kind.dtype == expected_dtype
        assert torch.equal(of_kind, of_tensor)


@every_call
def test_a_layer_under_autocast_gives_values(call):
    values = torch.tensor(POSITIVE[-call.size :]).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_a_layer = torch.nn.functional.linear(values, torch.eye(call.size))
        assert of_a_layer.dtype == torch.bfloat16
        found = call.of(model(), of_a_layer)
    for of_layer, of_values in zip(several(found), several(call.of(model(), values)), strict=True):
        assert torch.equal(of_layer, of_values)


def test_without_a_tensor_the_dtype_is_that_of_torch():
    assert Q([0] * 4, factor=[1] * 7, topology=TOPOLOGY).loc.dtype == torch.float32
    assert Q(np.zeros(4), factor=[1] * 7, topology=TOPOLOGY).loc.dtype == torch.float64


def test_gradients_come_back_in_the_dtypes_of_the_parameters():
    loc, lower = torch.zeros(4).requires_grad_(), torch.ones(7).requires_grad_()
    x = torch.ones(4, dtype=torch.float64).requires_grad_()
    Q(loc, factor=lower, topology=TOPOLOGY).log_prob(x).backward()
    assert (loc.grad.dtype, lower.grad.dtype, x.grad.dtype) == (torch.float32, torch.float32, torch.float64)


OTHERS = {
    "GaussianGraphicalModel": lambda dtype: model(dtype).moved_to(torch.ones(4, dtype=dtype)),
    "Independent(Normal)": lambda dtype: Independent(Normal(torch.zeros(4, dtype=dtype), 0.5), 1),
    "MultivariateNormal": lambda dtype: MultivariateNormal(
        torch.zeros(4, dtype=dtype), scale_tril=0.5 * torch.eye(4, dtype=dtype)
    ),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("swapped", [False, True])
def test_divergences_between_dtypes_are_those_of_the_wider(other, swapped):
    def divergence(own, of_other):
        pair = model(own), OTHERS[other](of_other)
        return kl_divergence(*(pair[::-1] if swapped else pair))

    expected = divergence(torch.float64, torch.float64)
    for dtypes in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        assert divergence(*dtypes).dtype == torch.float64
        assert torch.equal(divergence(*dtypes), expected)
    assert sample_and_kl(model(), model(torch.float64), kl="sampled")[1].dtype == torch.float64


@pytest.mark.parametrize(
    "mask", [[True, False, False, True], np.array([1, 0, 0, 1], bool), torch.tensor([1, 0, 0, 1]) > 0]
)
def test_nodes_may_be_a_mask(mask):
    q = model(torch.float64)
    assert torch.equal(q.condition(mask, [1.0, 2.0]).loc, q.condition([0, 3], [1.0, 2.0]).loc)
    assert torch.equal(q.marginal(mask).factor, q.marginal([0, 3]).factor)


# ---------------------------------------------------------------------- mistakes


def nan(call: Call) -> Tensor:
    values = torch.tensor(POSITIVE[-call.size :]).float()
    values[1] = torch.nan
    return values


MISTAKES: dict[str, tuple[Callable[[Call], Any], type[Exception]]] = {
    "last axis": (lambda call: torch.ones(call.size + 2), sg.ShapeError),
    "a number": (lambda call: 1.0, sg.ShapeError),
    "a list too long": (lambda call: [1.0] * (call.size + 2), sg.ShapeError),
    "batch": (lambda call: torch.tensor(POSITIVE[-call.size :]).float().expand(3, -1), sg.ShapeError),
    "complex": (lambda call: torch.ones(call.size, dtype=torch.complex64), sg.DTypeError),
    "numpy complex": (lambda call: np.ones(call.size, complex), sg.DTypeError),
    "a list of complex numbers": (lambda call: [1j] * call.size, sg.DTypeError),
    "text": (lambda call: ["a"] * call.size, sg.DTypeError),
    "objects": (lambda call: np.array([object()] * call.size), sg.DTypeError),
    "extended precision": (lambda call: np.ones(call.size, np.longdouble), sg.DTypeError),
    "None in a list": (lambda call: [None] * call.size, sg.DTypeError),
    "device": (lambda call: torch.ones(call.size, device="meta"), ValueError),
    "NaN": (nan, sg.NonFiniteError),
    "NaN in a list": (lambda call: nan(call).tolist(), sg.NonFiniteError),
}
INNER = (
    "square_distance",
    "solve",
    "matmul",
    "sample_and",
    "cholesky",
    "_vjp",
    "outer",
    "astype",
    "rhs",
    "column 1 of",
)


@every_call
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_the_words_of_the_call(call, mistake):
    value, error = MISTAKES[mistake]
    with pytest.raises(error) as caught:
        call.of(model(torch.float32, 2, validate_args=True), value(call))
    message = str(caught.value)
    assert message.startswith(f"{call.function}: ")
    assert call.argument in message
    assert not [word for word in INNER if word in message.removeprefix(call.function)]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@every_call
def test_a_value_that_is_not_finite_is_told_by_node(call):
    if call.function != "condition":
        with pytest.raises(sg.NonFiniteError, match=rf"^{call.function}: {call.argument} must be .* node \d of Star"):
            call.of(model(validate_args=True), nan(call))


def test_words_of_an_unknown_argument_are_those_of_the_class():
    with pytest.raises(TypeError, match=r"^GaussianGraphicalModel\.__init__\(\) got an unexpected .*'precision'"):
        Q(torch.zeros(4), precision=torch.ones(7), topology=TOPOLOGY)
    with pytest.raises(TypeError, match=r"^sample_and_kl: q must be a GaussianGraphicalModel, got Normal"):
        sample_and_kl(Normal(0.0, 1.0))


def test_a_bad_parameter_of_the_other_distribution_is_told():
    for scale in (0.0, torch.inf, torch.nan):
        other = Independent(Normal(torch.zeros(4), torch.full((4,), scale), validate_args=False), 1)
        for pair in ((model(), other), (other, model())):
            with pytest.raises(sg.NonFiniteError, match=r"^kl_divergence: scale of Normal"):
                kl_divergence(*pair)


# ---------------------------------------------------------------------- results beyond the dtype

LARGE = {torch.float32: 1e25, torch.float64: 1e200}
"""Squares overflow, the numbers themselves do not."""


def pair(dtype: torch.dtype, loc: float = 0.0, pivot: float = 1.0) -> Q:
    """Two nodes, of which the first has this mean and pivot."""
    return Q(
        torch.tensor([loc, 0.0], dtype=dtype),
        factor=torch.tensor([pivot, 0.0, 1.0], dtype=dtype),
        topology=sg.Chain(2),
    )


def standard(dtype: torch.dtype) -> Independent:
    return Independent(Normal(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)), 1)


def standard_dense(dtype: torch.dtype) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))


def vector(dtype: torch.dtype, large: float) -> Tensor:
    return torch.tensor([large, 0.0], dtype=dtype)


BEYOND: dict[str, tuple[str, Callable[[torch.dtype, float], Any]]] = {
    "log_prob": ("log_prob", lambda d, x: pair(d).log_prob(vector(d, x))),
    "rsample_and_log_prob": ("rsample_and_log_prob", lambda d, x: pair(d).rsample_and_log_prob(noise=vector(d, x))),
    "rsample_and_log_prob, many": (
        "rsample_and_log_prob",
        lambda d, x: pair(d).rsample_and_log_prob(noise=vector(d, x).expand(64, 2)),
    ),
    "sample_and_kl": ("sample_and_kl", lambda d, x: sample_and_kl(pair(d, x))),
    "sample_and_kl, sampled": ("sample_and_kl", lambda d, x: sample_and_kl(pair(d, x), kl="sampled")),
    "sample_and_kl, sampled, a prior": (
        "sample_and_kl",
        lambda d, x: sample_and_kl(pair(d, x), pair(d), kl="sampled"),
    ),
    "kl_divergence": ("kl_divergence", lambda d, x: kl_divergence(pair(d, x), pair(d))),
    "kl_divergence, the trace": ("kl_divergence", lambda d, x: kl_divergence(pair(d), pair(d, 0.0, x))),
    "kl_divergence to Normal": ("kl_divergence", lambda d, x: kl_divergence(pair(d, x), standard(d))),
    "kl_divergence from Normal": ("kl_divergence", lambda d, x: kl_divergence(standard(d), pair(d, x))),
    "kl_divergence to dense": ("kl_divergence", lambda d, x: kl_divergence(pair(d, x), standard_dense(d))),
    "kl_divergence from dense": ("kl_divergence", lambda d, x: kl_divergence(standard_dense(d), pair(d, x))),
    "variance": ("variance", lambda d, x: pair(d, 0.0, 1 / x).variance),
    "trace_covariance": ("trace_covariance", lambda d, x: trace_of_two(d)),
    "covariance_on": ("covariance_on", lambda d, x: pair(d, 0.0, 1 / x).covariance_on([(0, 0)])),
    "correlation_on": ("correlation_on", lambda d, x: pair(d, 0.0, 1 / x).correlation_on([(0, 1)])),
    "covariance_matrix": ("covariance_matrix", lambda d, x: pair(d, 0.0, 1 / x).covariance_matrix),
    "precision": ("precision", lambda d, x: pair(d, 0.0, x).precision),
    "precision_matrix": ("precision_matrix", lambda d, x: pair(d, 0.0, x).precision_matrix),
    "information": ("information_vector", lambda d, x: pair(d, x, x).information_vector),
    "whiten": ("whiten", lambda d, x: pair(d, 0.0, x).whiten(vector(d, x))),
    "colorize": ("colorize", lambda d, x: pair(d, 0.0, 1 / x).colorize(vector(d, x))),
    "rsample": ("rsample", lambda d, x: pair(d, 0.0, torch.finfo(d).tiny * 2.0**-20).rsample((64,))),
    "sample": ("sample", lambda d, x: pair(d, 0.0, torch.finfo(d).tiny * 2.0**-20).sample((64,))),
    "condition": ("condition", lambda d, x: coupled(d, x).condition([0], [x])),
    "marginal": ("marginal", lambda d, x: pair(d, 0.0, x).marginal([1])),
}


def trace_of_two(dtype: torch.dtype) -> Tensor:
    """Two variances in range whose sum is not."""
    pivot = (torch.finfo(dtype).max * 0.7) ** -0.5
    return Q([0, 0], factor=torch.tensor([pivot, 0.0, pivot], dtype=dtype), topology=sg.Chain(2)).trace_covariance()


def coupled(dtype: torch.dtype, large: float) -> Q:
    """P in range, P_AB v not."""
    root = large**0.5
    return Q([0, 0], factor=torch.tensor([root, root, root], dtype=dtype), topology=sg.Chain(2))


@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_a_result_beyond_the_dtype_raises_as_in_numpy(name, dtype):
    function, call = BEYOND[name]
    number = str(dtype).removeprefix("torch.")
    with pytest.raises(
        sg.NonFiniteError,
        match=rf"^{function}: the arguments are finite but the result overflows {number}\. Rescale, or use float64\.$",
    ):
        call(dtype, LARGE[dtype])


def test_where_values_cannot_be_read_a_result_beyond_the_dtype_is_infinite():
    q, x = pair(torch.float32), vector(torch.float32, 1e25)
    assert torch.func.vmap(q.log_prob)(x[None]).item() == -torch.inf
    assert torch.compile(q.log_prob, backend="aot_eager")(x).item() == -torch.inf


# ---------------------------------------------------------------------- devices

FEATURES, IMAGE = torch.randn(2, 3), torch.randn(2, 3, 2, 3)
HEADS: dict[str, tuple[Callable[[], torch.nn.Module], Tensor]] = {
    "FactorHead": (lambda: FactorHead(3, sg.ExtendedGrid(2, 3)), FEATURES),
    **{
        f"PrecisionHead, {name}": (
            lambda name=name: PrecisionHead(3, sg.Grid(2, 3), getattr(parametrize, name)),
            FEATURES,
        )
        for name in ("dominant", "scaled", "edge", "spectral")
    },
    "PrecisionHead of many nodes": (lambda: PrecisionHead(3, sg.Grid(9, 9), parametrize.spectral), FEATURES),
    "ConvHead": (lambda: ConvHead(3, sg.ExtendedGrid(2, 3)), IMAGE),
    "ConvHead of P": (lambda: ConvHead(3, sg.Grid(2, 3), 3, parametrize.dominant), IMAGE),
}


def answers(q: Q) -> dict[str, Any]:
    """Whatever can be asked of a Gaussian, as functions without arguments."""
    n, x = q.topology.n, torch.zeros(q.topology.n, device="cpu", dtype=q.loc.dtype)
    other = q.moved_to(q.loc + 1.0)
    normal = Independent(Normal(x, torch.ones_like(x)), 1)
    dense = MultivariateNormal(x, scale_tril=torch.diag_embed(torch.ones_like(x)))
    return {
        **{
            name: lambda name=name: getattr(q, name)
            for name in (
                *("variance", "stddev", "precision", "information_vector"),
                *("precision_matrix", "covariance_matrix"),
            )
        },
        **{name: getattr(q, name) for name in ("rsample", "sample", "entropy", "trace_covariance")},
        "rsample_and_log_prob": lambda: q.rsample_and_log_prob()[1],
        "log_prob": lambda: q.log_prob(x),
        "log_prob of a list": lambda: q.log_prob([0.0] * n),
        "whiten": lambda: q.whiten(x),
        "colorize": lambda: q.colorize(x),
        "covariance_on": lambda: q.covariance_on([(0, 1), (1, n - 1)]),
        "correlation_on": lambda: q.correlation_on([(0, 1)]),
        "condition": lambda: q.condition([0], [1.0]).loc,
        "marginal": lambda: q.marginal([n - 1, 0]).factor,
        "sample_and_kl": lambda: sample_and_kl(q)[0],
        "sample_and_kl, sampled": lambda: sample_and_kl(q, kl="sampled")[1],
        "kl": lambda: kl_divergence(q, other),
        "kl to Normal": lambda: kl_divergence(q, normal),
        "kl from Normal": lambda: kl_divergence(normal, q),
        "kl to dense": lambda: kl_divergence(q, dense),
        "kl from dense": lambda: kl_divergence(dense, q),
        "estimate_trace_covariance": lambda: q.estimate_trace_covariance(rng=0).value,
        "estimate_trace_covariance, torch's numbers": lambda: q.estimate_trace_covariance().value,
        "observe": lambda: q.observe([0, 1], [1.0, 2.0], 0.5).loc,
        "observe a matrix": lambda: q.observe(csr_array(np.ones((1, n))), [1.0], 0.5).loc,
        "log_evidence": lambda: q.log_evidence(csr_array(np.ones((1, n))), [1.0], 0.5),
        "log_normaliser": lambda: q.log_normaliser(),
        "jeffreys": lambda: geometry.jeffreys(q, other),
        "e_geodesic": lambda: geometry.e_geodesic(q, other, 0.5).factor,
        "fisher_rao_bounds": lambda: geometry.fisher_rao_bounds(q, other).upper,
        "precondition": lambda: precondition(q).loc if q.topology.is_factor_free else q.loc,
        "refine": lambda: (
            refine(q, lambda z: -z.square().sum(-1), 2).gaussian.loc if q.topology.is_factor_free else q.loc
        ),
    }


ANOTHER_DEVICE = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here; meta stands for it")


@pytest.fixture(params=["meta", pytest.param("cuda", marks=ANOTHER_DEVICE)])
def other_device(request):
    """Where torch puts what says no device: a user's GPU, or what stands for it."""
    yield lambda: torch.set_default_device(request.param)
    torch.set_default_device(None)


@pytest.mark.parametrize("topology", [sg.Chain(4), sg.Grid(3, 3), TOPOLOGY], ids=str)
def test_answers_do_not_depend_on_the_default_device(topology, other_device):
    q = Q(torch.zeros(topology.n), factor=torch.ones(topology.factor_pattern.nnz), topology=topology)
    asked = answers(q)
    torch.manual_seed(0)
    expected = {name: ask() for name, ask in asked.items()}
    other_device()
    torch.manual_seed(0)
    for name, ask in asked.items():
        found = ask()
        assert found.device.type == "cpu", name
        assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("name", HEADS)
def test_heads_do_not_depend_on_the_default_device(name, other_device):
    make, features = HEADS[name]
    head = make()
    head(features).entropy().sum().backward()
    expected, gradient = head(features).entropy(), [p.grad.clone() for p in head.parameters()]
    head.zero_grad()
    other_device()
    head(features).entropy().sum().backward()
    assert torch.equal(head(features).entropy(), expected)
    assert all(torch.equal(p.grad, bar) for p, bar in zip(head.parameters(), gradient, strict=True))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_built_and_asked_without_memory(name):
    make, features = HEADS[name]
    with torch.device("meta"):
        head = make()
    q, expected = head(features.to("meta")), make()(features)
    for ask in (
        lambda g: g.loc,
        lambda g: g.factor,
        lambda g: g.variance,
        lambda g: g.precision,
        lambda g: g.covariance_matrix,
        lambda g: g.rsample(),
    ):
        assert ask(q).device.type == "meta"
        assert ask(q).shape == ask(expected).shape


THAT_FAIL = {
    "observe": lambda q: q.observe([0, 1], [0.0, 1.0], -1.0),
    "log_evidence": lambda q: q.log_evidence([0, 1], [0.0, 1.0], 0.0),
    "centroid": lambda q: geometry.centroid([q, q], [-1.0, 2.0]),
    "e_geodesic": lambda q: geometry.e_geodesic(q, q, np.nan),
    "natural_step": lambda q: natural_step(q, torch.zeros(3), torch.zeros(5), rate=np.nan),
}
"""Calls in which an argument is wrong that is no vector over the nodes."""


WORDS = ["variance", "variance", "weights", "t", "rate"]


@pytest.mark.parametrize(("function", "word"), [*zip(THAT_FAIL, WORDS, strict=True)])
def test_a_wrong_argument_that_is_no_vector_is_named(function: str, word: str) -> None:
    q = GaussianGraphicalModel(torch.zeros(3), factor=torch.ones(5), topology=sg.Chain(3))
    with pytest.raises((sg.NonFiniteError, sg.NonPositiveError), match=f"^{function}: {word} must be "):
        THAT_FAIL[function](q)


def test_arrays_that_run_backwards_and_negated_views_are_taken() -> None:
    q = GaussianGraphicalModel(np.arange(4.0)[::-1], factor=np.ones(7)[::-1], topology=sg.Chain(4))
    assert q.loc.tolist() == [3.0, 2.0, 1.0, 0.0]
    x = torch.randn(4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    negated = x.conj().imag
    assert negated.is_neg()
    assert torch.equal(q.log_prob(negated), q.log_prob(-x.imag))
    assert GaussianGraphicalModel(negated, factor=torch.ones(7).double(), topology=sg.Chain(4)).rsample().shape == (4,)


CHAIN = sg.Chain(4)
ARRAYS = {
    "GaussianGraphicalModel": (
        {"loc": np.zeros(4), "factor": np.ones(7)},
        lambda **given: Q(**given, topology=CHAIN),
    ),
    "from_precision": (
        {"loc": np.zeros(4), "precision": CHAIN.pack((np.full(4, 3.0), np.ones(3)))},
        lambda **given: Q.from_precision(**given, topology=CHAIN),
    ),
    "log_prob": ({"value": np.zeros(4)}, None),
    "sample_and_kl": ({"noise": np.ones(4)}, None),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_what_is_written_into_an_array_changes_no_answer_and_no_gradient(name):
    """Autograd knows the versions of tensors, not those of arrays."""
    arrays, make = ARRAYS[name]
    arrays = {argument: array.copy() for argument, array in arrays.items()}
    leaf = torch.ones(4, dtype=torch.float64, requires_grad=True)
    own = Q(leaf, factor=torch.ones(7, dtype=torch.float64), topology=CHAIN)
    if make:
        q = make(**arrays)
        total = kl_divergence(q, own)
    else:
        total = own.log_prob(**arrays) if name == "log_prob" else sample_and_kl(own, **arrays)[0].square().sum()
    (before,) = torch.autograd.grad(total, leaf, retain_graph=True)
    answer = q.log_prob(np.ones(4)).item() if make else 0.0
    for array in arrays.values():
        array += 5.0
    assert torch.equal(torch.autograd.grad(total, leaf)[0], before)
    assert not make or q.log_prob(np.ones(4)).item() == answer


def test_samples_are_asked_for_by_their_shape_or_by_their_noise():
    q = Q(torch.zeros(4), factor=torch.ones(7), topology=CHAIN)
    with pytest.raises(sg.ShapeError, match="rsample_and_log_prob: give sample_shape or noise"):
        q.rsample_and_log_prob((1000,), noise=torch.zeros(4))


@pytest.mark.parametrize("name", ["observe", "log_evidence"])
def test_no_observation_at_all_is_refused_by_name(name: str) -> None:
    q = GaussianGraphicalModel(torch.zeros(4), factor=torch.ones(7), topology=sg.Chain(4))
    with pytest.raises(sg.ShapeError, match=f"^{name}: needs a node or more, got none"):
        getattr(q, name)(np.zeros(4, bool), np.zeros(0), 0.5)

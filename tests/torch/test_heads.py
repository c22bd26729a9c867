"""Network heads: where they start, what they compute, what their state refuses."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import sparseggm as sg
from sparseggm import parametrize
from sparseggm.torch import (
    ConvHead,
    FactorHead,
    GaussianGraphicalModel,
    PotentialHead,
    PrecisionHead,
    sample_and_kl,
)
from tests import numerics
from tests.numerics import WIDE, failure_margin

FAMILIES = {name: getattr(parametrize, name) for name in ("dominant", "scaled", "edge", "spectral")}
every_family = pytest.mark.parametrize("family", FAMILIES)
LATTICES = [
    (sg.ExtendedGrid(4, 5), (4, 5), parametrize.factor),
    (sg.Stencil(4, 5, 1), (4, 5), parametrize.factor),
    (sg.ExtendedGrid(4, 5), (4, 5), parametrize.regression),
    (sg.Grid(4, 5), (4, 5), parametrize.dominant),
    (sg.Grid(4, 5), (4, 5), parametrize.spectral),
]
every_lattice = pytest.mark.parametrize(
    ("topology", "shape", "family"),
    LATTICES,
    ids=[f"{topology}-{type(family).__name__}" for topology, _, family in LATTICES],
)


def of_size(features: int, family: str | None, topology: sg.Topology) -> nn.Module:
    return FactorHead(features, topology) if family is None else PrecisionHead(features, topology, FAMILIES[family])


@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_a_head_starts_at_the_identity_with_live_gradients(family):
    topology = sg.Chain(5) if family is None else sg.Grid(2, 3)
    head, features = of_size(3, family, topology), torch.randn(4, 3)
    q = head(features)
    torch.testing.assert_close(q.precision_matrix, torch.eye(topology.n).expand(4, -1, -1))
    x = torch.linspace(-1.0, 2.0, topology.n).expand(4, -1)
    q.log_prob(x).sum().backward()
    fed = head.layer.weight.grad[topology.n :].abs().sum(1)
    has_pull = torch.ones(len(fed), dtype=torch.bool)
    if family == "edge":  # a share of nothing: r_e has no gradient while w_e = 0
        has_pull[topology.n + len(topology.edges) :] = False
    assert (fed[has_pull] > 0).all()


@every_family
def test_a_precision_head_gives_what_its_family_makes_of_its_layer(family):
    topology = sg.Grid(2, 3)
    head = PrecisionHead(3, topology, FAMILIES[family]).double()
    nn.init.normal_(head.layer.weight)
    features = torch.randn(4, 3, dtype=torch.float64)
    outputs = head.layer(features)
    precision = FAMILIES[family](topology, outputs[:, 6:].detach().numpy())
    expected = sg.GaussianGraphicalModel.from_precision(
        outputs[:, :6].detach().numpy(), precision=precision, topology=topology
    )
    np.testing.assert_allclose(head(features).variance.detach(), expected.variance, rtol=1e-12)
    np.testing.assert_array_equal(head(features).loc.detach(), expected.loc)


def test_a_precision_head_has_no_use_for_a_factor():
    with pytest.raises(ValueError, match="for L itself use FactorHead"):
        PrecisionHead(3, sg.Chain(4), parametrize.factor)
    with pytest.raises(ValueError, match="for a precision use PrecisionHead"):
        FactorHead(3, sg.Chain(4), parametrize.dominant)


def test_a_head_of_regression_coordinates_gives_their_factor():
    head, features = FactorHead(3, sg.ExtendedGrid(2, 3), parametrize.regression), torch.randn(4, 3)
    nn.init.normal_(head.layer.weight)
    inputs = head.layer(features)[:, 6:].detach().numpy()
    expected = parametrize.regression(sg.ExtendedGrid(2, 3), inputs)
    np.testing.assert_allclose(head(features).factor.detach(), expected, rtol=1e-6)


def test_weights_for_another_least_scale_are_refused():
    head = FactorHead(3, sg.Chain(4), parametrize.RegressionFamily(0.1))
    state = FactorHead(3, sg.Chain(4), parametrize.RegressionFamily(0.2)).state_dict()
    with pytest.raises(sg.PatternError, match=r"another family than that of .*RegressionFamily\(least_scale=0.1\)"):
        head.load_state_dict(state)


POTENTIALS = {
    "semidefinite_edge": (sg.Grid(2, 3), parametrize.semidefinite_edge),
    "gram": (sg.ExtendedGrid(2, 3), parametrize.gram),
    "dominant": (sg.Grid(2, 3), parametrize.dominant),
}
every_potential = pytest.mark.parametrize("name", POTENTIALS)


def potential_head(name):
    return PotentialHead(3, *POTENTIALS[name])


def prior_of(topology, dtype=torch.float32):
    precision = parametrize.dominant(topology, torch.full((topology.n + len(topology.edges),), 0.3, dtype=dtype))
    loc = torch.linspace(-1.0, 1.0, topology.n, dtype=dtype)
    return GaussianGraphicalModel.from_precision(loc, precision=precision, topology=topology)


@every_potential
def test_a_potential_head_starts_alike_for_all_features_with_live_gradients(name):
    head, features = potential_head(name), torch.randn(4, 3)
    potential, n = head(features), head.topology.n
    scale = {"semidefinite_edge": np.log(2), "gram": np.log(2) ** 2, "dominant": 1.0}[name]
    dense = potential.topology.precision_pattern.to_dense(potential.precision.detach().numpy(), symmetric=True)
    np.testing.assert_allclose(dense, np.broadcast_to(scale * np.eye(n), dense.shape), rtol=1e-6, atol=1e-15)
    q = prior_of(head.topology).product(potential)
    (q.loc.square().sum() + q.log_prob(torch.linspace(-1.0, 2.0, n).expand(4, -1)).sum()).backward()
    pulls = head.layer.weight.grad.abs().sum(1) > 0
    if name == "semidefinite_edge":  # a share of nothing: r_e has no gradient while w_e = 0
        pulls = pulls[: 2 * n + len(head.topology.edges)]
    assert pulls.all()


@every_potential
def test_a_potential_head_gives_what_its_family_makes_of_its_layer(name):
    head, features = potential_head(name).double(), torch.randn(4, 3, dtype=torch.float64)
    nn.init.normal_(head.layer.weight)
    outputs, topology = head.layer(features).detach().numpy(), head.topology
    expected = sg.Potential(outputs[:, :6], precision=head.family(topology, outputs[:, 6:]), topology=topology)
    np.testing.assert_array_equal(head(features).information.detach(), expected.information)
    np.testing.assert_allclose(head(features).precision.detach(), expected.precision, rtol=1e-13, atol=1e-15)


@every_potential
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e6, 1e10, 1e20, 1e30, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_posterior_is_positive_definite_or_an_error_however_large_the_output(name, scale, dtype):
    """L Lᵀ within rounding of P + Λ; or an error, if Λ overflows, or if P + Λ is too near to singular for the dtype."""
    head = potential_head(name).to(dtype)
    nn.init.normal_(head.layer.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.layer.weight.mul_(scale / 4).clamp_(-3e38, 3e38)
    features, prior = torch.linspace(-1.0, 1.0, 3, dtype=dtype), prior_of(head.topology, dtype)
    inputs = head.layer(features).detach()[head.topology.n :].double()
    if head.family(head.topology, inputs).abs().max() > torch.finfo(dtype).max:
        with pytest.raises(sg.NonFiniteError, match=r"overflows|precision must be finite, got inf at node"):
            head(features)
        return
    potential = head(features)
    on, arrays = head.topology.precision_pattern, (prior.precision.numpy(), potential.precision.detach().numpy())
    exact = on.to_dense(sum(array.astype(WIDE) for array in arrays), symmetric=True)
    root = np.sqrt(np.diagonal(exact))
    scaled, n = exact / (root[:, None] * root), head.topology.n
    try:
        q = prior.product(potential)
    except sg.NotPositiveDefiniteError:
        rounded = n * numerics.unit_roundoff(arrays[0].dtype) + n**2 * numerics.unit_roundoff(np.float64)
        assert np.linalg.eigvalsh(scaled.astype(np.float64))[0] <= failure_margin(n, arrays[0].dtype) + rounded
        return
    lower = q.factor_pattern.to_dense(q.factor.detach().numpy().astype(WIDE)) / root[:, None]
    assert (abs(lower @ lower.T - scaled) <= failure_margin(n, arrays[0].dtype)).all()
    assert q.loc.isfinite().all()


def test_a_head_refuses_a_family_of_another_kind():
    with pytest.raises(ValueError, match="PrecisionHead: the family must give a P ≻ 0; for a Λ ⪰ 0 use PotentialHead"):
        PrecisionHead(3, sg.Chain(4), parametrize.gram)
    with pytest.raises(ValueError, match="PrecisionHead: the family must give a P ≻ 0"):
        PrecisionHead(3, sg.Chain(4), parametrize.semidefinite_edge)
    with pytest.raises(ValueError, match=r"PotentialHead: the family must give Λ, as parametrize\.gram does"):
        PotentialHead(3, sg.Chain(4), parametrize.factor)
    for head in (PrecisionHead, PotentialHead):
        with pytest.raises(
            ValueError, match=f"{head.__name__}: the family must be one of sparseggm.parametrize, .* got 'd"
        ):
            head(3, sg.Chain(4), "dominant")
    with pytest.raises(ValueError, match="ConvHead: needs the family factor, regression, dominant or spectral"):
        ConvHead(3, sg.Grid(2, 3), 1, parametrize.semidefinite_edge)
    with pytest.raises(
        sg.PatternError, match=r"parametrize\.gram: Grid\(2, 3\) is not factor-free: .*semidefinite_edge"
    ):
        PotentialHead(3, sg.Grid(2, 3), parametrize.gram)


def test_weights_of_a_gaussian_do_not_load_into_a_potential():
    gaussian, potential = (make(3, sg.Grid(2, 3), parametrize.dominant) for make in (PrecisionHead, PotentialHead))
    for head, other in ((gaussian, potential), (potential, gaussian)):
        with pytest.raises(sg.PatternError, match="for another family than that of Grid"):
            head.load_state_dict(other.state_dict())


@every_lattice
def test_a_convolution_starts_at_the_identity(topology, shape, family):
    q = ConvHead(3, topology, 3, family)(torch.randn(2, 3, *shape))
    assert q.batch_shape == (2,)
    torch.testing.assert_close(q.precision_matrix, torch.eye(topology.n).expand(2, -1, -1))


@every_lattice
def test_a_convolution_puts_each_number_at_the_first_pixel_of_its_edge(topology, shape, family):
    """A 1 × 1 convolution of known maps: the inputs of the family, written out edge by edge."""
    head = ConvHead(1, topology, 1, family)
    convolution = head.layer.convolution
    nn.init.normal_(convolution.weight)
    nn.init.normal_(convolution.bias)
    image = torch.randn(1, *shape)
    maps = convolution(image).detach().numpy()
    first, width = [divmod(pixel, shape[1]) for pixel in range(topology.n)], shape[1]
    pairs = (
        np.stack([topology.factor_pattern.rows, topology.factor_pattern.cols], 1)  # natural orders
        if isinstance(family, type(parametrize.factor))
        else [*((node, node) for node in range(topology.n)), *topology.edges]
    )
    offsets = sorted(
        {(max(i, j) // width - min(i, j) // width, max(i, j) % width - min(i, j) % width) for i, j in pairs}
    )
    inputs = [
        maps[1 + offsets.index((max(i, j) // width - min(i, j) // width, max(i, j) % width - min(i, j) % width))][
            first[min(i, j)]
        ]
        for i, j in pairs
    ]
    outputs = head.layer(image).detach().numpy()
    np.testing.assert_array_equal(outputs, [*(maps[0][place] for place in first), *inputs])


def test_a_convolution_moves_with_its_features_away_from_borders():
    topology, shape = sg.ExtendedGrid(6, 7), (6, 7)
    head = ConvHead(2, topology)
    nn.init.normal_(head.layer.convolution.weight, std=0.3)
    image = torch.randn(1, 2, *shape)
    here, moved = (head(features).precision_matrix[0].detach() for features in (image, image.roll((1, 1), (-2, -1))))
    inner = [row * 7 + column for row in range(1, 4) for column in range(1, 5)]
    block = here[inner][:, inner], moved[[i + 8 for i in inner]][:, [i + 8 for i in inner]]
    torch.testing.assert_close(*block)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ConvHead(1, sg.Stencil(2, 3, 1, channels=2)), sg.PatternError, "of one channel, Grid"),
        (
            lambda: ConvHead(1, sg.Grid(2, 3, 2), 1, parametrize.dominant),
            sg.PatternError,
            "ConvHead: needs ExtendedGrid",
        ),
        (lambda: ConvHead(1, sg.Tree([-1, 0, 0, 1])), sg.PatternError, "ConvHead: needs ExtendedGrid"),
        (lambda: ConvHead(1, sg.Grid(2, 3), 2, parametrize.dominant), ValueError, "an odd kernel_size"),
        (lambda: ConvHead(1, sg.Grid(2, 3), 1, parametrize.edge), ValueError, "needs the family factor"),
        (lambda: ConvHead(1, sg.Grid(2, 3)), sg.PatternError, "not factor-free"),
        (lambda: FactorHead(1, sg.Grid(2, 3)), sg.PatternError, r"FactorHead: Grid\(2, 3\) is .* Use PrecisionHead"),
        (lambda: ConvHead(1, sg.ExtendedGrid(2, 3))(torch.zeros(1, 3, 2)), sg.ShapeError, "features must be"),
    ],
)
def test_what_a_convolution_cannot_serve_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


HEADS = {
    "factor": lambda: FactorHead(3, sg.ExtendedGrid(2, 3)),
    **{name: lambda family=family: PrecisionHead(3, sg.Grid(2, 3), family) for name, family in FAMILIES.items()},
    **{name: lambda name=name: potential_head(name) for name in POTENTIALS if name != "dominant"},
    "convolution": lambda: ConvHead(3, sg.ExtendedGrid(2, 3)),
    "convolution of P": lambda: ConvHead(3, sg.Grid(2, 3), 3, parametrize.dominant),
}
every_head = pytest.mark.parametrize("name", HEADS)


def features_of(name, *batch):
    torch.manual_seed(0)
    return torch.randn(*batch, 3, 2, 3) if "convolution" in name else torch.randn(*batch, 3)


def randomised(head):
    """Weights that no other head has."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.uniform_(-0.5, 0.5)
    return head


def gaussian_of(head, features):
    """What the head emits, a potential times a prior."""
    emitted = head(features)
    return prior_of(head.topology).product(emitted) if isinstance(head, PotentialHead) else emitted


def is_same_gaussian(one, other):
    return torch.equal(one.loc, other.loc) and torch.equal(one.factor, other.factor)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (PrecisionHead(3, sg.Grid(2, 3), parametrize.spectral), "family"),
        (PrecisionHead(3, sg.Torus(3, 3), parametrize.dominant), "topology"),
        (PrecisionHead(3, sg.Grid(2, 3, order=[5, 4, 3, 2, 1, 0]), parametrize.dominant), "order of elimination"),
    ],
    ids=["family", "graph", "order"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_weights_for_something_else_do_not_load(other, what, strict):
    head = PrecisionHead(3, sg.Grid(2, 3), parametrize.dominant)
    state = head.state_dict() | {"_extra_state": other.state_dict()["_extra_state"]}
    with pytest.raises(sg.PatternError, match=rf"for another {what} than that of Grid\(2, 3\), DominantFamily"):
        head.load_state_dict(state, strict=strict)
    head.load_state_dict(PrecisionHead(3, sg.Grid(2, 3), parametrize.dominant).state_dict(), strict=strict)


def test_weights_of_another_version_do_not_load():
    head = FactorHead(3, sg.Chain(4))
    state = head.state_dict() | {"_extra_state": {"family": "FactorFamily", "pattern": "", "order": ""}}
    with pytest.raises(sg.PatternError, match="FactorHead: the saved weights are of another version of sparseggm"):
        head.load_state_dict(state)


def test_weights_of_a_plain_layer_load_when_not_strict():
    head, layer = FactorHead(3, sg.Chain(4)), nn.Linear(3, 11)
    missing = head.load_state_dict({f"layer.{name}": value for name, value in layer.state_dict().items()}, strict=False)
    assert missing.missing_keys == ["_extra_state"]
    assert torch.equal(head.layer.weight, layer.weight)


HANDLINGS = {
    "clone": lambda states: {name: value.clone() for name, value in states[0].items()},
    "moving average": lambda states: {
        name: 0.999 * value + 0.001 * states[1][name].to(value.dtype) for name, value in states[0].items()
    },
    "mean of workers": lambda states: {
        name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]
    },
    "half and back": lambda states: {name: value.half() for name, value in states[0].items()},
    "bfloat16": lambda states: {name: value.bfloat16() for name, value in states[0].items()},
}


@every_head
@pytest.mark.parametrize("handling", HANDLINGS)
def test_a_state_dict_is_tensors_which_can_be_handled_as_such(name, handling):
    states = [randomised(HEADS[name]()).state_dict() for _ in range(2)]
    assert all(isinstance(value, torch.Tensor) for value in states[0].values())
    head = HEADS[name]()
    head.load_state_dict(HANDLINGS[handling](states))
    torch.testing.assert_close(
        head.state_dict()["_extra_state"], states[0]["_extra_state"]
    )  # for the same topology again


@every_head
def test_a_head_is_built_without_memory_and_filled_from_a_state_dict(name):
    trained, features = randomised(HEADS[name]()), features_of(name, 2)
    with torch.device("meta"):
        head = HEADS[name]()
    head = head.to_empty(device="cpu")
    head.load_state_dict(trained.state_dict())
    assert is_same_gaussian(gaussian_of(head, features), gaussian_of(trained, features))
    with torch.device("meta"):
        assigned = HEADS[name]()
    assigned.load_state_dict(trained.state_dict(), assign=True)
    assert is_same_gaussian(gaussian_of(assigned, features), gaussian_of(trained, features))


@every_head
def test_weight_norm_leaves_the_start_and_the_training_as_they_were(name):
    head, features = HEADS[name](), features_of(name, 4)
    weight_norm(head.layer.convolution if "convolution" in name else head.layer)
    if not isinstance(head, PotentialHead):
        torch.testing.assert_close(head(features).precision_matrix, torch.eye(6).expand(4, -1, -1))
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = -gaussian_of(head, features).log_prob(torch.ones(6)).sum()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_head_in_half_precision_gives_a_gaussian_in_float32(name, dtype):
    """As under Lightning's bf16-true and 16-true: z goes back to the dtype of a decoder by `.to`."""
    head, features = HEADS[name]().to(dtype), features_of(name, 4).to(dtype)
    decoder = nn.Linear(6, 5, dtype=dtype)
    q = gaussian_of(head, features)
    z, kl = sample_and_kl(q)
    assert (z.dtype, kl.dtype, q.log_prob(z.to(dtype)).dtype) == (torch.float32,) * 3
    (decoder(z.to(features.dtype)).float().square().sum(-1) + kl).mean().backward()
    for parameter in head.parameters():
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    "make",
    [partial(sg.Chain, 6), partial(sg.Band, 6, 2), partial(sg.BlockChain, 3, 2)],
    ids=["chain", "band", "block chain"],
)
def test_weights_for_the_same_graph_in_another_order_do_not_load(make):
    """Their patterns are equal; the order alone tells them apart."""
    head, backwards = FactorHead(3, make()), FactorHead(3, make(order=range(6)[::-1]))
    assert head.topology.factor_pattern is backwards.topology.factor_pattern
    with pytest.raises(sg.PatternError, match="for another order of elimination than that of"):
        head.load_state_dict(backwards.state_dict())
    FactorHead(3, make(order=range(6)[::-1])).load_state_dict(backwards.state_dict())


@pytest.mark.parametrize("family", [None, "dominant", "spectral"])
def test_a_fresh_head_compiles_whole(family):
    topology = sg.ExtendedGrid(2, 4) if family is None else sg.Grid(2, 4)
    head, features, noise = of_size(3, family, topology), torch.randn(2, 3), torch.randn(2, 8)

    def step(features):
        z, kl = sample_and_kl(head(features), noise=noise)
        return z.sum() + kl.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(features)
    torch.testing.assert_close(compiled, step(features))

"""Posteriors by name: their graphs and families, trees by their edges, and the tree nearest to a trained posterior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sparseggm.graph.families import Band
from sparseggm.graph.graphs import Graph, Grid, Tree
from sparseggm.torch import GaussianGraphicalModel
from sparseggm.vae import (
    POSTERIORS,
    VAE,
    CheckpointError,
    Config,
    ConfigError,
    DivergedError,
    Images,
    Training,
    chow_liu,
    evaluate,
    load_run,
    posterior_topology,
    trees,
)
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.ladder import untrained
from sparseggm.vae.likelihoods import Bernoulli, held_out

GRIDS = ("grid-dominant", "grid-scaled", "grid-edge", "grid-spectral")


def moved(vae: VAE, seed: int = 0) -> VAE:
    """The same model, whose head emits couplings: weights of a head feed the family with next to nothing at first."""
    draws = torch.Generator().manual_seed(seed)
    weight = vae.head.layer.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=draws) / weight.shape[1] ** 0.5)
    return vae


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_tracked_factor_is_that_of_the_posterior_on_the_pattern_of_the_recipe(
    posterior: str, digits: Images, recipe: Config, tmp_path: Path
) -> None:
    recipe = replace(recipe, posterior=posterior, latent=6)
    training = Training(recipe, digits, tmp_path)
    training.train_epoch(StopRequest())
    tracked, order = np.load(tmp_path / "tracked.npz"), recipe.topology.order
    q = training.vae.posterior(held_out(Bernoulli(), digits, "test")[:1])
    lower = np.zeros((6, 6))
    lower[tracked["rows"], tracked["cols"]] = tracked["factor"][1]
    np.testing.assert_array_equal(tracked["order"], order)
    precision = (lower @ lower.T)[np.ix_(np.argsort(order), np.argsort(order))]
    np.testing.assert_allclose(precision, q.precision_matrix[0].detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tracked["loc"][1], q.loc[0].detach().numpy())


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_precision_is_on_the_graph_of_its_posterior_and_a_run_is_loaded_with_it(
    posterior: str, digits: Images, recipe: Config, tmp_path: Path
) -> None:
    recipe = replace(recipe, posterior=posterior, latent=6, precision="64-true")
    training = Training(recipe, digits, tmp_path)
    moved(training.vae)
    training.save()
    config, vae, _ = load_run(tmp_path)
    assert config == recipe
    q = vae.posterior(held_out(Bernoulli(), digits, "test")[:3])
    joined = np.eye(6, dtype=bool)
    joined[tuple(recipe.topology.edges.T)] = joined[tuple(recipe.topology.edges.T[::-1])] = True
    precision = q.precision_matrix.detach().numpy()
    assert (precision[:, ~joined] == 0).all()
    assert (np.abs(precision[:, joined]) > 1e-6).all()
    assert torch.equal(q.loc, training.vae.posterior(held_out(Bernoulli(), digits, "test")[:3]).loc)


@pytest.mark.parametrize("posterior", GRIDS)
def test_a_grid_of_each_family_starts_at_the_standard_normal_and_learns_couplings(
    posterior: str, digits: Images, recipe: Config, tmp_path: Path
) -> None:
    training = Training(replace(recipe, posterior=posterior, latent=6, learning_rate=0.01), digits, tmp_path)
    x = held_out(Bernoulli(), digits, "test")[:3]
    assert torch.allclose(training.vae.posterior(x).precision_matrix, torch.eye(6), atol=1e-6)
    training.train_epoch(StopRequest())
    off_diagonal = training.vae.posterior(x).precision_matrix - torch.diag_embed(
        training.vae.posterior(x).precision_matrix.diagonal(dim1=-2, dim2=-1)
    )
    assert off_diagonal.abs().amax() > 1e-3


def test_graphs_are_those_of_their_names() -> None:
    assert posterior_topology("tree", 7) == Tree((-1, 0, 0, 1, 1, 2, 2))
    assert posterior_topology("full", 5) == Band(5, 4)
    assert len(posterior_topology("full", 5).edges) == 10
    assert posterior_topology("full", 1).factor_pattern.nnz == posterior_topology("tree", 1).factor_pattern.nnz == 1
    for name in GRIDS:
        assert posterior_topology(name, 12) == Grid(3, 4)


def test_a_tree_has_the_edges_it_was_given_in_any_order() -> None:
    topology = posterior_topology("tree", 5, "3-1 0-3  4-3\t2-4")
    assert topology.edges.tolist() == Graph(5, [(1, 3), (3, 0), (3, 4), (2, 4)]).edges.tolist()
    assert posterior_topology("tree", 2, "1-0").edges.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ("0-1 1-2 2", r"edges: needed pairs of nodes such as 0-1 1-5, got '2'\."),
        ("0-1 1-2 2--3", r"got '2--3'"),
        ("0-1 1-2 2-x", r"got '2-x'"),
        ("0-1,1-2,2-3", r"got '0-1,1-2,2-3'"),
        ("0-1 1-2 2-4", r"edges: nodes must be in 0 … 3, got 2-4\."),
        ("0-1 1-2 2-99999999999", r"got '2-99999999999'"),
        ("0-1 1-2", r"edges: a tree on 4 latent variables has 3 edges, got 2\."),
        ("0-1 1-2 2-3 3-0", r"has 3 edges, got 4\."),
        ("0-1 1-2 2-0", r"not a tree: no path joins nodes 0 and 3, so some edges form a cycle\."),
        ("0-1 1-0 2-3", r"no path joins nodes 0 and 2"),
        ("0-1 1-2 3-3", r"no path joins nodes 0 and 3"),
        (" ", r"has 3 edges, got 0\."),
    ],
)
def test_edges_of_no_tree_are_refused(edges: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(posterior="tree", latent=4, edges=edges)


def test_edges_are_for_trees() -> None:
    with pytest.raises(ConfigError, match="edges 0-1 needs posterior tree, got posterior chain"):
        Config(posterior="chain", latent=2, edges="0-1")
    with pytest.raises(ConfigError, match="needs posterior tree"):
        posterior_topology("full", 2, "0-1")


def test_a_recipe_of_too_many_latents_is_made_without_its_graph() -> None:
    for posterior in ("tree", "full", "grid-edge"):
        Config(posterior=posterior, latent=2**31 - 2)


def test_the_dense_factor_counts_in_the_memory_that_is_needed(digits: Images, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this machine has"):
        Training(Config(posterior="full", latent=100_000, hidden=1000), digits, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_identity_of_a_recipe_names_only_what_was_chosen(recipe: Config) -> None:
    before = {"posterior", "latent", "hidden", "epochs", "batch", "learning_rate", "seed", "split", "kl", "tracked"}
    before |= {"accelerator", "precision", "data", "factor_pattern"}
    assert recipe.identity("600 digits").keys() == before
    chosen = replace(recipe, posterior="tree", edges="0-1 1-2 2-3", encoder_hidden=20)
    assert chosen.identity("600 digits").keys() == before | {"edges", "encoder_hidden"}


def test_the_encoder_alone_has_the_width_of_the_encoder(recipe: Config) -> None:
    plain, wider = untrained(recipe), untrained(replace(recipe, encoder_hidden=24))
    assert [layer.out_features for layer in wider.encoder[::2]] == [24, 24]
    assert [tuple(w.shape) for w in wider.decoder.parameters()] == [tuple(w.shape) for w in plain.decoder.parameters()]
    same = untrained(replace(recipe, encoder_hidden=recipe.hidden))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))


# ---------------------------------------------------------------------- the nearest tree


@pytest.fixture
def run(few_digits: Images, tmp_path: Path) -> Path:
    """A run of a dense posterior with couplings."""
    recipe = Config(posterior="full", latent=4, hidden=16, epochs=1, batch=200)
    training = Training(recipe, few_digits, tmp_path / "run")
    moved(training.vae)
    training.save()
    return tmp_path / "run"


def spanning_trees(n: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """All nⁿ⁻² of them, by trying all sets of n − 1 edges."""
    for edges in itertools.combinations(itertools.combinations(range(n), 2), n - 1):
        adjacency = np.eye(n, dtype=int)
        for i, j in edges:
            adjacency[i, j] = adjacency[j, i] = 1
        if (np.linalg.matrix_power(adjacency, n) > 0).all():
            yield edges


def distance_to_tree(sigma: npt.NDArray[np.float64], edges: tuple[tuple[int, int], ...]) -> float:
    """KL(N(0, Σ) ‖ its projection): P_T = Σ_edges [Σ_ee]⁻¹ − Σ_i (degree_i − 1) / Σ_ii."""
    n = len(sigma)
    precision = np.diag(1.0 / np.diag(sigma))
    for i, j in edges:
        both = np.ix_([i, j], [i, j])
        precision[both] += np.linalg.inv(sigma[both]) - np.diag(1.0 / np.diag(sigma)[[i, j]])
    logdet = np.linalg.slogdet(sigma)[1] + np.linalg.slogdet(precision)[1]
    return float(0.5 * (np.trace(precision @ sigma) - n - logdet))


def test_chow_liu_finds_the_nearest_of_all_trees(run: Path, few_digits: Images) -> None:
    found = tuple(tuple(map(int, edge.split("-"))) for edge in chow_liu(run).split())
    _, vae, _ = load_run(run)
    with torch.no_grad():
        x = vae.likelihood.observe(few_digits.train, trees.generator(0, "chow-liu", 0))
        sigma = vae.double().posterior(x).covariance_matrix.numpy()
    distances = {edges: np.mean([distance_to_tree(each, edges) for each in sigma]) for edges in spanning_trees(4)}
    assert len(distances) == 16
    nearest, second = sorted(distances.values())[:2]
    assert distances[found] == nearest < second - 1e-6


def test_the_found_edges_are_a_recipe(run: Path) -> None:
    assert Config(posterior="tree", latent=4, edges=chow_liu(run)).topology.n == 4


def test_a_run_of_independent_latents_has_every_tree(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    Training(replace(recipe, posterior="diagonal"), few_digits, tmp_path)
    assert len(Config(posterior="tree", latent=4, edges=chow_liu(tmp_path)).topology.edges) == 3


def test_a_tree_of_other_digits_or_of_equal_latents_is_refused(run: Path, few_digits: Images) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    _, vae, _ = load_run(run)
    with torch.no_grad():  # z_1 = z_0 to working precision
        vae.head.layer.weight.zero_()
        vae.head.layer.bias[4:] = 1e30
    torch.save({**state, "model": vae.state_dict()}, run / "checkpoint.pt")
    with pytest.raises(DivergedError, match="correlation 1 to working precision"):
        chow_liu(run)
    object.__setattr__(few_digits, "name", "other digits")
    try:
        with pytest.raises(CheckpointError, match="trained on 600 digits, found other digits"):
            chow_liu(run)
    finally:
        object.__setattr__(few_digits, "name", "600 digits")


def test_a_run_with_a_tree_of_edges_is_evaluated(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    training = Training(replace(recipe, posterior="tree", edges="2-0 2-1 2-3"), few_digits, tmp_path)
    training.train_epoch(StopRequest())
    assert isinstance(training.vae.posterior(held_out(Bernoulli(), few_digits, "test")[:2]), GaussianGraphicalModel)
    assert evaluate(tmp_path, samples=3)["elbo"] < 0

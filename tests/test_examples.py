"""The experiments behind the documentation, in their tiny settings, and their figures against what is documented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparseggm as sg
from examples import cone
from tests.gaussian.test_nile import NILE

ROOT = Path(__file__).resolve().parent.parent
TINY = cone.Settings(side=2, models=3, fractions=(0.5, 0.9), seed=1)


def test_the_cone_measurement_writes_its_figure_and_its_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is optional")
    result = cone.run(TINY, tmp_path)
    assert (tmp_path / "cone.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "cone.json").read_text()) == json.loads(json.dumps(result))
    assert result["versions"]["sparseggm"] == sg.__version__
    assert result["settings"]["seed"] == 1


def test_larger_families_lose_less_and_projecting_loses_less_than_shrinking() -> None:
    losses = cone.measure(TINY)[0.9]
    for direction in ("to_model", "from_model"):
        dominant, projected, scaled, spectral = (getattr(losses[way], direction) for way in cone.WAYS)
        assert (dominant + 1e-9 >= scaled).all()
        assert (dominant + 1e-6 >= projected).all()
        assert (dominant > projected + 1e-3).any()
        np.testing.assert_allclose(spectral, 0, atol=1e-12)


def test_a_projection_is_dominant_and_of_a_dominant_model_itself() -> None:
    topology = sg.Grid(3, 3)
    rng = np.random.default_rng(0)
    outside = cone.packed(topology, 1.0, rng.uniform(0.3, 0.35, 12) * rng.choice([-1, 1], 12))
    for direction in (cone.to_model, cone.from_model):
        nearest = cone.project(topology, outside, direction)
        assert sg.gershgorin.slack(topology.precision_pattern, nearest).min() >= 0.9e-6
        inside = sg.parametrize.dominant(topology, rng.standard_normal(21))
        np.testing.assert_allclose(cone.project(topology, inside, direction), inside, rtol=1e-3, atol=1e-3)


def test_a_gradient_of_the_projection_agrees_with_differences() -> None:
    rng = np.random.default_rng(0)
    model, q, step = (np.eye(3) + 0.1 * (x + x.T) for x in rng.standard_normal((3, 3, 3)))
    for divergence in (cone.to_model, cone.from_model):
        slope = (divergence(model, q + 1e-6 * step)[0] - divergence(model, q - 1e-6 * step)[0]) / 2e-6
        assert slope == pytest.approx((divergence(model, q)[1] * step).sum(), rel=1e-7)


def test_the_documented_losses_are_those_of_the_measurement() -> None:
    rows = json.loads((ROOT / "docs/images/cone.json").read_text())["losses"]
    text = (ROOT / "docs/positivity.md").read_text()
    for row in rows:
        if row["fraction"] == 0.9:
            found = re.search(rf"^\| {row['way']} \|(.*)$", text, flags=re.MULTILINE)
            assert found, row["way"]
            for name in ("KL(q||p)", "KL(p||q)"):
                assert f"{row[f'{name}, nats']['mean']:.4f}" in found[1]


# ---------------------------------------------------------------------- Gaussian fields


def documented(name: str) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((ROOT / f"docs/images/{name}.json").read_text())
    return numbers


def assert_numbers(found: dict[str, Any], expected: dict[str, Any], rel: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=rel), name


def test_the_nile_is_that_of_the_documentation(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is optional")
    nile = pytest.importorskip("examples.nile")
    assert_numbers(nile.run(tmp_path), documented("nile"), rel=1e-3)
    assert (tmp_path / "nile.png").stat().st_size > 10_000
    np.testing.assert_array_equal(nile.NILE, NILE)


def test_the_lip_cancer_data_are_the_published_ones() -> None:
    """Cases and expected cases both sum to 536; the graph is symmetric, with 264 neighbours [Clayton & Kaldor 1987]."""
    pytest.importorskip("torch", reason="torch is optional")
    lip_cancer = pytest.importorskip("examples.lip_cancer")
    assert lip_cancer.COUNTS.sum() == 536
    assert lip_cancer.EXPECTED.sum() == pytest.approx(536, abs=1)
    assert len(lip_cancer.OUTDOORS) == 56
    near = lip_cancer.NEIGHBOURS
    assert all(i + 1 in near[j - 1] for i, row in enumerate(near) for j in row)
    assert sum(map(len, near)) == 2 * len(lip_cancer.districts().edges) == 264


@pytest.mark.parametrize(
    ("sd", "mix", "counts", "effect", "deviation"),
    [
        (
            0.5,
            0.87,
            [6.8920586, 38.2145678, 10.3420327, 7.5427226, 14.1903577, 9.6496050],
            0.377434934,
            0.124970953,
        ),
        (
            0.7,
            0.5,
            [7.9719999, 38.6355919, 10.8320744, 8.3231808, 14.7394064, 9.1918351],
            0.410665800,
            0.165770178,
        ),
    ],
)
def test_the_posterior_of_lip_cancer_is_that_of_pylgm(
    sd: float, mix: float, counts: list[float], effect: float, deviation: float
) -> None:
    """Of pyLGM 0.6.1, its Laplace approximation: expected counts of the first districts, and the effect."""
    pytest.importorskip("torch", reason="torch is optional")
    lip_cancer = pytest.importorskip("examples.lip_cancer")
    found = lip_cancer.Risks().fitted(sd, mix)
    eta, q = found.observation.predictive(found.posterior), found.posterior
    expected = lip_cancer.EXPECTED * np.exp(eta.mean + eta.variance / 2)  # the mean of a log-normal number
    assert expected[:6] == pytest.approx(counts, rel=2e-8)
    assert (q.loc[-1], np.sqrt(q.variance[-1])) == pytest.approx((effect, deviation), rel=1e-7)  # its prior is not flat


def test_lip_cancer_is_that_of_the_documentation(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is optional")
    lip_cancer = pytest.importorskip("examples.lip_cancer")
    assert_numbers(lip_cancer.run(tmp_path), documented("lip_cancer"), rel=1e-3)
    assert (tmp_path / "lip_cancer.png").stat().st_size > 10_000


def test_a_field_on_a_mesh_recovers_what_was_simulated(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is optional")
    mesh_field = pytest.importorskip("examples.mesh_field")
    found = mesh_field.run(mesh_field.Settings(nodes=400, observations=200, range=0.5), tmp_path)
    assert 0.2 < found["range"] < 1.2
    assert 0.4 < found["sd"] < 2.5
    assert 0.1 < found["noise"] < 0.25
    assert 0.8 < found["part of the field within 95 % intervals"] <= 1
    assert (tmp_path / "mesh_field.png").stat().st_size > 10_000


def test_a_field_on_a_lattice_is_within_its_intervals(tmp_path: Path) -> None:
    lattice_field = pytest.importorskip("examples.lattice_field")
    found = lattice_field.run(lattice_field.Settings(side=32, range=10.0), tmp_path)
    assert 0.9 < found["part of the field within 95 % intervals"] < 0.99
    assert (tmp_path / "lattice_field.png").stat().st_size > 10_000


def test_the_logistic_regression_writes_its_figure_and_its_numbers(tmp_path: Path) -> None:
    """Of four features a tree is nearly all: each graph has a larger ELBO, and the full Gaussian agrees with HMC."""
    for package in ("torch", "sklearn", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} is optional")
    from examples import logistic_regression

    tiny = logistic_regression.Settings(features=4, train=100, edges_a_node=1, steps=100, adam_steps=1000, draws=500)
    result = logistic_regression.run(tiny, tmp_path)
    assert (tmp_path / "logistic_regression.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "logistic_regression.json").read_text()) == json.loads(json.dumps(result))
    bounds = [row["ELBO, nats"] for row in result["posteriors"].values()]
    diagonal, tree, graph, full, by_adam = bounds
    assert diagonal < tree <= graph + 1e-9
    assert graph <= full + 1e-9
    assert by_adam == pytest.approx(full, abs=0.02)
    assert result["HMC"]["R̂"] < 1.02
    assert result["posteriors"]["full"]["error of means"] < 0.1
    assert result["posteriors"]["full"]["standard deviations over HMC's"] == pytest.approx(1.0, abs=0.1)

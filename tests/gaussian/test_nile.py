"""Evidence of a local linear trend on the Nile: a nearly diffuse prior, against a Kalman filter in sixty digits.

The numbering of time, and whether P or L is given, decide how many digits log det P keeps: docs/math.md, section 7.
"""

from __future__ import annotations

import decimal
from decimal import Decimal

import numpy as np
import pytest

from sparseggm import Band, BlockChain, GaussianGraphicalModel, Topology
from tests.numerics import Array

# Annual flow at Aswan in 10⁸ m³, 1871 to 1970 [Cobb 1978, Biometrika 65, 243–251].
# fmt: off
NILE = np.array([
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140,
    1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969,
    831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845, 864, 862, 698, 845, 744, 796, 1040, 759,
    781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890,
    744, 749, 838, 1050, 918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740,
], dtype=np.float64)
# fmt: on
YEARS = len(NILE)
DIFFUSE, NOISE, LEVEL, SLOPE = 10**12, 15_000, 1_400, 20
"""Variances: of the first level and slope, of an observation, and of a year's steps of level and slope."""

TRUTH = -661.483090316
LEVELS = 2 * np.arange(YEARS)
"""Nodes: level and slope of the first year, of the second, …"""


def evidence_by_kalman_filter(diffuse: int = DIFFUSE) -> float:
    """log p(y) = Σ_t log N(y_t; y_t's prediction), in sixty digits."""
    with decimal.localcontext(prec=60):
        level, slope = Decimal(0), Decimal(0)
        p, q, r = Decimal(diffuse), Decimal(0), Decimal(diffuse)  # variance of the level, covariance, of the slope
        two_pi = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
        total = Decimal(0)
        for y in NILE.tolist():
            error, variance = Decimal(y) - level, p + NOISE
            total -= ((two_pi * variance).ln() + error * error / variance) / 2
            level, slope = level + p / variance * error, slope + q / variance * error
            p, q, r = p - p * p / variance, q - q * p / variance, r - q * q / variance
            level, p, q, r = level + slope, p + 2 * q + r + LEVEL, q + r, r + SLOPE
        return float(total)


def whitened_model() -> Array:
    """R with P = Rᵀ R: each row a step x_t − F x_{t−1} of the model, or a first state, over its deviation."""
    steps = np.eye(2 * YEARS)
    for t in range(1, YEARS):
        steps[2 * t : 2 * t + 2, 2 * t - 2 : 2 * t] = [[-1, -1], [0, -1]]
    variances = [DIFFUSE, DIFFUSE, *[LEVEL, SLOPE] * (YEARS - 1)]
    return steps / np.sqrt(variances)[:, None]


def given_precision(topology: Topology) -> GaussianGraphicalModel:
    R = whitened_model()
    return GaussianGraphicalModel.from_precision(
        np.zeros(2 * YEARS), precision=topology.pack(R.T @ R), topology=topology
    )


def given_factor(topology: Topology) -> GaussianGraphicalModel:
    """In this order L is Rᵀ itself: nothing is multiplied out, nothing is factorised."""
    L = whitened_model().T[topology.order][:, topology.order]
    factor = topology.factor_pattern.values_of(L)  # which refuses anything above the diagonal
    return GaussianGraphicalModel(np.zeros(2 * YEARS), factor=factor, topology=topology)


def evidence(prior: GaussianGraphicalModel) -> float:
    """log p(y) = log p(z) + log p(y | z) − log p(z | y), at the posterior mean."""
    posterior = prior.observe(LEVELS, NILE, float(NOISE))
    z = posterior.loc
    log_likelihood = -0.5 * ((NILE - z[LEVELS]) ** 2 / NOISE + np.log(2 * np.pi * NOISE)).sum()
    return float(prior.log_prob(z) + log_likelihood - posterior.log_prob(z))


FORWARDS = [BlockChain(YEARS, 2), Band(2 * YEARS, 3)]
BACKWARDS = [
    BlockChain(YEARS, 2, order=range(2 * YEARS)[::-1]),
    Band(2 * YEARS, 3, order=range(2 * YEARS)[::-1]),
]


def test_the_truth_is_that_of_a_filter_in_sixty_digits() -> None:
    assert evidence_by_kalman_filter() == pytest.approx(TRUTH, abs=1e-9)


@pytest.mark.parametrize("topology", FORWARDS, ids=str)
def test_forwards_in_time_the_evidence_loses_digits(topology: Topology) -> None:
    """What the documentation warns of, so that its numbers stay true."""
    assert 1e-3 < abs(evidence(given_precision(topology)) - TRUTH) < 0.1


@pytest.mark.parametrize("topology", BACKWARDS, ids=str)
def test_backwards_in_time_the_evidence_keeps_its_digits(topology: Topology) -> None:
    assert evidence(given_precision(topology)) == pytest.approx(TRUTH, abs=1e-5)


@pytest.mark.parametrize("topology", BACKWARDS, ids=str)
def test_backwards_and_given_the_factor_nothing_is_lost(topology: Topology) -> None:
    assert evidence(given_factor(topology)) == pytest.approx(TRUTH, abs=1e-8)


@pytest.mark.parametrize("topology", [*FORWARDS, *BACKWARDS], ids=str)
def test_variances_of_the_posterior_are_right_in_any_order(topology: Topology) -> None:
    variance = given_precision(topology).observe(LEVELS, NILE, float(NOISE)).variance
    assert variance[LEVELS[50]] == pytest.approx(2363.20482564, rel=1e-11)

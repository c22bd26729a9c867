"""Fits to samples, and estimates from random probes: those of the NumPy Gaussian, of numbers without gradients."""

from __future__ import annotations

from typing import Any, Self

import torch

from sparseggm.gaussian.model import GaussianGraphicalModel, TraceMethod, require_arrays
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.linalg import checks
from sparseggm.promotion import constant
from sparseggm.stochastic.estimators import Estimate
from sparseggm.stochastic.randomness import Seed
from sparseggm.torch.border import as_tensors
from sparseggm.torch.factored import FactoredDistribution
from sparseggm.torch.operators.registration import array, have_values


class EstimatedDistribution(FactoredDistribution):
    """A mean and a sparse factor that may come from samples: see `GaussianGraphicalModel`."""

    @classmethod
    def fit(cls, samples: Any, topology: Topology, *, ridge: float = 0.0) -> Self:
        """Maximum likelihood for samples (..., N, n): `sparseggm.GaussianGraphicalModel.fit`, without gradients.

        With gradients, on a graph that is chordal in its order: `geometry.project` of the moments.
        """
        require_topology("fit", topology)
        (samples,) = as_tensors("fit", samples=samples)
        found = GaussianGraphicalModel.fit(array(samples.detach()), topology, ridge=ridge)
        loc, factor = (torch.from_numpy(values.copy()) for values in (found.loc, found.factor))
        return cls._of("fit", loc, factor, topology, found.factor_pattern, None, is_on_topology=found.is_on_topology)

    def estimate_trace_covariance(self, method: TraceMethod = "probing", rng: Seed = None, **options: int) -> Estimate:
        """tr Σ from random probes: `sparseggm.GaussianGraphicalModel.estimate_trace_covariance`, without gradients.

        Args:
            rng: source of the probes as there; None: a seed from torch's generator.
        """
        own = self._in_numpy("estimate_trace_covariance")
        return _of_tensors(own.estimate_trace_covariance(method, _seeded(rng), **options))

    def estimate_kl_divergence(
        self, other: EstimatedDistribution | None = None, *, num_probes: int, rng: Seed = None
    ) -> Estimate:
        """KL(self ‖ other) from probes: `sparseggm.GaussianGraphicalModel.estimate_kl_divergence`, without gradients.

        Args:
            other: None is N(0, I).
            rng: source of the probes as there; None: a seed from torch's generator.
        """
        function = "estimate_kl_divergence"
        if other is not None:
            checks.require_gaussian(function, "other", other, EstimatedDistribution)
        p = None if other is None else other._in_numpy(function)
        estimate = self._in_numpy(function).estimate_kl_divergence(p, num_probes=num_probes, rng=_seeded(rng))
        return _of_tensors(estimate)

    @classmethod
    def from_numpy(cls, gaussian: GaussianGraphicalModel, *, validate_args: bool | None = None) -> Self:
        """The same Gaussians as `sparseggm.GaussianGraphicalModel` has them, of tensors: copies, in the same dtype."""
        require_arrays("from_numpy", gaussian)
        loc, factor = (torch.from_numpy(values.copy()) for values in (gaussian.loc, gaussian.factor))
        alike = gaussian.topology, gaussian.factor_pattern, validate_args
        made = cls._of("from_numpy", loc, factor, *alike, is_on_topology=gaussian.is_on_topology)
        made._given = None if gaussian._given is None else torch.from_numpy(gaussian._given.copy())
        return made._numbered(gaussian._nodes)

    def numpy(self) -> GaussianGraphicalModel:
        """The same Gaussians as a `sparseggm.GaussianGraphicalModel`: copies, without gradients.

        Raises:
            ValueError: tensors of a transform or a trace, which have no numbers yet.
        """
        return self._in_numpy("numpy")

    def _in_numpy(self, function: str) -> GaussianGraphicalModel:
        """`numpy`, whose errors name another function."""
        tensors = self.loc.detach(), self._factor.detach()
        if not have_values(*tensors):
            raise ValueError(f"{function}: needs numbers, got tensors of a transform or a trace, whose are not known.")
        loc, factor = (constant(array(tensor)) for tensor in tensors)
        given = None if self._given is None else constant(array(self._given.detach()))
        own = GaussianGraphicalModel._made(function, loc, factor, self.topology, self.factor_pattern, given)
        own.is_on_topology = self.is_on_topology
        return own._numbered(self._nodes)


def _seeded(rng: Seed) -> Seed:
    return int(torch.randint(2**62, (), device="cpu")) if rng is None else rng


def _of_tensors(estimate: Estimate) -> Estimate:
    value, error = (torch.as_tensor(part, device="cpu") for part in estimate)
    return Estimate(value, error)  # type: ignore[arg-type]

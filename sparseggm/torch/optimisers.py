"""An optimiser of free-standing Gaussians: natural-gradient variational inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparseggm.errors import PatternError, ShapeError
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.natural_gradients import natural_step

MOST_HALVINGS = 60


class NaturalGradient(torch.optim.Optimizer):
    """Natural-gradient descent of a loss of Gaussians that are given by parameters loc and L.

        optimiser = NaturalGradient(loc, factor, topology, lr=0.1)
        q = GaussianGraphicalModel(loc, factor=factor, topology=topology)       # in each step
        (-elbo(q)).backward(); optimiser.step()

    A step is `natural_step` of rate lr along −gradient: straight in natural parameters, so that lr = 1 is exact for a
    Gaussian posterior on the graph, if the gradient is. The loss is a sum over the batch, not a mean. A step that would
    leave the cone P ≻ 0 is halved until it stays; `shortened` counts the halvings of each Gaussian, and is no part of
    the state dict.

    Args:
        loc: (..., n) leaf that asks for gradients, in the caller's numbering.
        factor: (..., nnz) leaf of the same batch axes, on `topology.factor_pattern`, diagonal positive.
        topology: factor-free.
        lr: ρ, which schedulers of torch may change.
    Cost: `natural_step`.
    Source: [Khan & Rue 2023] for the rule; docs/math.md, section 10, for the sparse one.
    """

    def __init__(self, loc: Tensor, factor: Tensor, topology: Topology, lr: float = 0.1) -> None:
        require_topology("NaturalGradient", topology)
        if not topology.is_factor_free:
            raise PatternError(f"NaturalGradient: needs a factor-free topology, got {topology}.")
        if loc.shape[:-1] != factor.shape[:-1]:
            raise ShapeError(
                "NaturalGradient: loc and factor must have the same batch axes, got shapes "
                f"{tuple(loc.shape)} and {tuple(factor.shape)}."
            )
        if not 0.0 < lr < float("inf"):
            raise ValueError(f"NaturalGradient: lr must be finite and > 0, got {lr}.")
        GaussianGraphicalModel(loc, factor=factor, topology=topology, validate_args=True)
        self._topology = topology
        self.shortened = torch.zeros(loc.shape[:-1], dtype=torch.int64, device=loc.device)
        super().__init__([loc, factor], {"lr": lr})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_topology": self._topology, "shortened": self.shortened}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after the first: an optimiser has one batch of Gaussians."""
        if self.param_groups:
            raise ValueError("NaturalGradient: has one loc and factor already. Make another for other Gaussians.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; a closure, if given, computes the loss and its gradients before it, and its value is returned.

        Raises:
            ValueError: loc or factor has no gradient; or P is so nearly singular that no step is inside of the cone.
            NonFiniteError: a gradient is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ((loc, factor),) = (group["params"] for group in self.param_groups)
        if loc.grad is None or factor.grad is None:
            raise ValueError("NaturalGradient: loc and factor need gradients. Call backward() on the loss.")
        q = GaussianGraphicalModel(loc, factor=factor, topology=self._topology, validate_args=False)
        new = self._inside(q, -loc.grad, -factor.grad, self.param_groups[0]["lr"])
        loc.copy_(new.loc)
        factor.copy_(new.factor)
        return loss

    def _inside(self, q: GaussianGraphicalModel, loc: Tensor, factor: Tensor, rate: float) -> GaussianGraphicalModel:
        """The Gaussians after the longest of the steps ρ, ρ/2, ρ/4, … of each that stays in the cone."""
        rates = torch.full_like(q.loc[..., 0], rate)
        for _ in range(MOST_HALVINGS):
            new, is_made = natural_step(q, loc, factor, rates)
            if is_made.all():
                return new
            rates = torch.where(is_made, rates, 0.5 * rates)
            self.shortened += ~is_made
        raise ValueError(
            f"NaturalGradient: needs a step inside of the cone, got none in {MOST_HALVINGS} halvings: P is singular to "
            "working precision. Start from a better conditioned L, or use float64."
        )

"""The tree on which the posteriors of a trained run are best approximated [Chow & Liu 1968].

Of the Gaussians on a tree T, the nearest to q in KL(q ‖ ·) has q's means, variances and covariances on the edges, and
is at the distance

    KL(q ‖ q_T) = I(q) − Σ_{ij ∈ T} I_ij,   I_ij = −½ log(1 − ρ_ij²),

where I(q) = −½ log det of the correlations does not depend on T. So the mean over images is least for the spanning tree
whose mean informations I_ij have the largest sum.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from sparseggm.vae.errors import ConfigError, DivergedError
from sparseggm.vae.evaluate import images_trained_on, load_run
from sparseggm.vae.model import VAE
from sparseggm.vae.randomness import generator

IMAGES_AT_ONCE = 1000

FloatArray = npt.NDArray[np.float64]


def chow_liu(run: Path, data: Path | None = None) -> str:
    """The edges of the tree nearest to the posteriors of the training images, as `Config.edges` takes them.

    Args:
        run: directory of a trained run of any posterior; of `full`, nothing but the tree itself is approximate.
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
    Returns:
        Edges such as "0-1 1-5 1-2".
    Raises:
        CheckpointError: there is no usable checkpoint, or it was trained on other images than were found.
        ConfigError: the run has several layers.
        DivergedError: two latent variables are the same to working precision, so that their information is infinite.
    Cost: one selected inverse with all pairs an image: O(n³) for n latent variables.
    """
    config, vae, state = load_run(run)
    found = images_trained_on(run, state, config, data)
    if not isinstance(vae, VAE):
        raise ConfigError(f"{run}: a tree needs a run of one layer, got {config.latents_in_words}.")
    information = mean_information(vae.double(), found.train)  # float64, for digits of 1 − ρ² cancel
    if not np.isfinite(information).all():
        raise DivergedError(f"{run}: some latent variables have correlation 1 to working precision.")
    return spanning_tree(information)


def mean_information(vae: VAE, images: Tensor) -> FloatArray:
    """(n, n) means over the images (N, 784) uint8 of I_ij = −½ log(1 − ρ_ij²) under q(z | x), nats; 0 for i = j."""
    n = vae.head.topology.n
    pairs = np.stack(np.triu_indices(n, 1), axis=1)
    total = torch.zeros(len(pairs), dtype=torch.float64, device="cpu")
    with torch.inference_mode():
        for start in range(0, len(images), IMAGES_AT_ONCE):
            x = vae.likelihood.observe(images[start : start + IMAGES_AT_ONCE], generator(0, "chow-liu", start))
            total -= 0.5 * torch.log1p(-vae.posterior(x).correlation_on(pairs).square()).sum(0)
    information = np.zeros((n, n))
    information[pairs[:, 0], pairs[:, 1]] = information[pairs[:, 1], pairs[:, 0]] = (total / len(images)).numpy()
    return information


def spanning_tree(weights: FloatArray) -> str:
    """The edges of the spanning tree with the largest sum of weights, (n, n) symmetric and not negative."""
    i, j = np.triu_indices(len(weights), 1)
    # The same constant on all edges changes no choice; without it, a weight of 0 would be an edge that is not there.
    costs = coo_array((weights.max() + 1.0 - weights[i, j], (i, j)), shape=weights.shape)
    tree = minimum_spanning_tree(costs.tocsr()).tocoo()
    edges = sorted(zip(tree.row, tree.col, strict=True))
    return " ".join(f"{first}-{second}" for first, second in edges)

"""The recipe of one run: every number that decides its results, and nothing else.

The paths of data and results are not part of the recipe, so a run can be moved. `Config.digest` names the recipe in
checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from sparseggm.graph.families import BlockChain, Chain, Diagonal, ExtendedGrid, Stencil
from sparseggm.graph.topology import Topology
from sparseggm.vae.errors import ConfigError

POSTERIORS = ("diagonal", "chain", "extended-grid", "block-chain")
LIKELIHOODS = ("bernoulli", "levels", "logit-normal")
DECODERS = ("dense", "convolutional")
PIXEL_GRAPHS = ("diagonal", "extended-grid", "stencil-3", "stencil-5")
STRUCTURES = ("per-image", "global")
SIDE = 28
PIXELS = SIDE**2
SPLITS = ("50k", "60k")
KL_ESTIMATORS = ("exact", "sampled")
# The operators of sparseggm.torch run on the CPU, in float32 and float64.
ACCELERATORS = ("cpu",)
PRECISIONS = ("32-true", "64-true")
# Below it, 1 − alpha may round to 1, whose logit is infinite.
LEAST_ALPHA = {"32-true": 2.0**-22, "64-true": 2.0**-50}
LARGEST_COUNT = 2**31 - 1
LARGEST_SEED = 2**64 - 1
# What each likelihood reads of the recipe, beside that which all read.
READS = {
    "bernoulli": (),
    "levels": ("pixels", "structure", "least_scale"),
    "logit-normal": ("pixels", "structure", "least_scale", "alpha"),
}
GREY = READS["logit-normal"]
# Left out of the identity where they have their defaults, so that runs begun before they existed go on.
ADDED = ("likelihood", "decoder", "pixels", "structure", "alpha")


@dataclass(frozen=True)
class Config:
    """One training run; the defaults are close to the poster's recipe.

    Args:
        posterior: graph of the approximate posterior: diagonal, chain, extended-grid or block-chain.
        latent: number of latent variables; the last two posteriors arrange them in the squarest rows × columns.
        hidden: width of each of the two hidden layers of encoder and decoder.
        epochs: passes over the training digits; the learning rate falls to 0.3 × at 60 % and to 0.1 × at 85 % of them.
        batch: digits a step.
        learning_rate: of Adam, at the start.
        seed: of the weights, the order, the binarisation and the noise; 0 … 2⁶⁴ − 1.
        split: 50k (50,000 / 10,000 validation / 10,000 test digits) or 60k (60,000 / none / 10,000).
        kl: exact (closed form) or sampled (log q(z) - log p(z) at the one sample).
        tracked: test digit whose posterior is recorded every epoch.
        accelerator: cpu; the operators of `sparseggm.torch` run there.
        precision: 32-true or 64-true, Lightning Fabric's names of float32 and float64.
        likelihood: bernoulli (of binarised pixels), levels (probability of the 256 grey levels) or logit-normal
            (density of dequantised grey levels); the last two are Gaussian graphical models of the pixels' logits.
        decoder: dense or convolutional.
        pixels: graph of the pixels' logits: diagonal, extended-grid, stencil-3 or stencil-5; not for bernoulli.
        structure: per-image (the decoder emits scales and couplings) or global (learnt once for all images).
        least_scale: least standard deviation of a pixel's logit given its parents, in [e⁻⁵, 1); not for bernoulli.
        alpha: squeezes dequantised numbers into (alpha, 1 - alpha); for logit-normal alone.
    """

    posterior: str = "chain"
    latent: int = 16
    hidden: int = 200
    epochs: int = 60
    batch: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    split: str = "50k"
    kl: str = "exact"
    tracked: int = 0
    accelerator: str = "cpu"
    precision: str = "32-true"
    likelihood: str = "bernoulli"
    decoder: str = "dense"
    pixels: str = "diagonal"
    structure: str = "per-image"
    least_scale: float = 0.03
    alpha: float = 1e-6

    def __post_init__(self) -> None:
        _one_of("posterior", self.posterior, POSTERIORS)
        _one_of("split", self.split, SPLITS)
        _one_of("kl", self.kl, KL_ESTIMATORS)
        _one_of("accelerator", self.accelerator, ACCELERATORS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("likelihood", self.likelihood, LIKELIHOODS)
        _one_of("decoder", self.decoder, DECODERS)
        _one_of("pixels", self.pixels, PIXEL_GRAPHS)
        _one_of("structure", self.structure, STRUCTURES)
        for name in ("latent", "hidden", "epochs", "batch"):
            require_count(name, getattr(self, name))
        _integer("tracked, the index of a test digit,", self.tracked, 0, LARGEST_COUNT)
        _integer("seed", self.seed, 0, LARGEST_SEED)
        if not (isinstance(self.learning_rate, float | int) and 0.0 < self.learning_rate < math.inf):
            raise ConfigError(f"learning_rate must be positive and finite, got {self.learning_rate}.")
        least = LEAST_ALPHA[self.precision]
        if not (isinstance(self.alpha, float) and least <= self.alpha < 0.5):
            raise ConfigError(
                f"alpha must be at least {least:.1g} in {self.precision} and below 0.5, got {self.alpha}."
            )
        if not (isinstance(self.least_scale, float) and math.exp(-5.0) <= self.least_scale < 1.0):
            raise ConfigError(f"least_scale must be in [exp(-5), 1), got {self.least_scale}.")
        self._require_read()
        posterior_topology(self.posterior, self.latent)

    def _require_read(self) -> None:
        """Refuse a choice that this likelihood would ignore."""
        for name in GREY:
            value, default = getattr(self, name), getattr(type(self), name)
            if value != default and name not in READS[self.likelihood]:
                readers = " or ".join(likelihood for likelihood, read in READS.items() if name in read)
                raise ConfigError(f"{name} {value} needs likelihood {readers}, got likelihood {self.likelihood}.")

    @property
    def topology(self) -> Topology:
        """Graph of the posterior."""
        return posterior_topology(self.posterior, self.latent)

    @property
    def is_grey(self) -> bool:
        """Whether grey levels are modelled, not binarised pixels."""
        return self.likelihood != "bernoulli"

    @property
    def pixel_topology(self) -> Topology:
        """Graph of the logits of a grey image."""
        return pixel_topology(self.pixels)

    def identity(self, data: str) -> dict[str, str | int | float]:
        """The facts that two runs must share to have the same numbers on one machine; `data` names the images."""
        facts = asdict(self)
        for name in ADDED:
            if facts[name] == getattr(type(self), name):
                del facts[name]
        if not self.is_grey:
            del facts["least_scale"]
        return {**facts, "data": data, "factor_pattern": self.topology.factor_pattern.key}

    def learning_rate_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        if epoch < 0.6 * self.epochs:
            return self.learning_rate
        return self.learning_rate * (0.3 if epoch < 0.85 * self.epochs else 0.1)


def require_count(name: str, value: int) -> None:
    """Raise a ConfigError unless the value is a positive count."""
    _integer(name, value, 1, LARGEST_COUNT)


def posterior_topology(posterior: str, latent: int) -> Topology:
    """The topology of that name on `latent` nodes.

    Raises:
        ConfigError: the name is unknown, or it needs a grid with two rows or more, and these nodes form none.
    """
    _one_of("posterior", posterior, POSTERIORS)
    if posterior == "diagonal":
        return Diagonal(latent)
    if posterior == "chain":
        return Chain(latent)
    rows, cols = squarest(latent)
    if rows < 2:
        near = [n for n in range(max(4, latent - 4), latent + 5) if squarest(n)[0] > 1]
        shapes = ", ".join(f"{n} = {r} × {c}" for n in near for r, c in [squarest(n)])
        raise ConfigError(f"{posterior} needs a latent size with two rows or more, got {latent}; near it: {shapes}.")
    return ExtendedGrid(rows, cols) if posterior == "extended-grid" else BlockChain(cols, rows)


def pixel_topology(pixels: str) -> Topology:
    """The graph of that name on the pixels of an image, row by row."""
    _one_of("pixels", pixels, PIXEL_GRAPHS)
    graphs = {
        "diagonal": Diagonal(PIXELS),
        "extended-grid": ExtendedGrid(SIDE, SIDE),
        "stencil-3": Stencil(SIDE, SIDE, 1),
        "stencil-5": Stencil(SIDE, SIDE, 2),
    }
    return graphs[pixels]


def squarest(n: int) -> tuple[int, int]:
    """Rows and columns of the grid of n nodes nearest to a square, rows ≤ columns; 1 × n for a prime n."""
    rows = max(r for r in range(1, math.isqrt(n) + 1) if n % r == 0)
    return rows, n // rows


def digest(identity: dict[str, str | int | float]) -> str:
    """SHA-256 of the canonical JSON text."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _integer(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name} must be an integer from {least} to {most:,}, got {value}.")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {name} {value!r}; one of: {', '.join(known)}.")

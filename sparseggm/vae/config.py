"""The recipe of one run: every number that decides its results, and nothing else.

The paths of data and results are not part of the recipe, so a run can be moved. `Config.digest` names the recipe in
checkpoints. The module is longer than others: it is one class, whose fields are explained one by one.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from sparseggm.graph.derived import derived
from sparseggm.graph.families import Diagonal, ExtendedGrid, Stencil
from sparseggm.graph.graphs import Graph
from sparseggm.graph.topology import Topology
from sparseggm.positivity.families import FactorFamily
from sparseggm.vae.checks import LARGEST_COUNT, require_count, require_integer, require_one_of
from sparseggm.vae.errors import ConfigError
from sparseggm.vae.latents import (
    LATENT_GAUSSIANS,
    Layer,
    latent_topology,
    layers_of,
    products_near,
    require_latents,
    squarest,
)

POSTERIORS = tuple(LATENT_GAUSSIANS)
LIKELIHOODS = ("bernoulli", "levels", "logit-normal")
DECODERS = ("dense", "convolutional")
PIXEL_GRAPHS = ("diagonal", "extended-grid", "stencil-3", "stencil-5")
STRUCTURES = ("per-image", "global")
SIDE = 28
PIXELS = SIDE**2
SPLITS = ("50k", "60k")
KL_ESTIMATORS = ("exact", "sampled", "path")
OBJECTIVES = ("elbo", "iwae", "piwae")
PRIORS = ("standard", "chain", "extended-grid", "full", "vamp")
HEADS = ("free", "residual", "potential")
PRECISIONS = ("32-true", "64-true")
# Below it, 1 − alpha may round to 1, whose logit is infinite.
LEAST_ALPHA = {"32-true": 2.0**-22, "64-true": 2.0**-50}
CHOICES = {
    "posterior": POSTERIORS,
    "split": SPLITS,
    "kl": KL_ESTIMATORS,
    "precision": PRECISIONS,
    "likelihood": LIKELIHOODS,
    "decoder": DECODERS,
    "pixels": PIXEL_GRAPHS,
    "structure": STRUCTURES,
    "prior": PRIORS,
    "objective": OBJECTIVES,
    "head": HEADS,
}
LARGEST_SEED = 2**64 - 1
GREY = ("levels", "logit-normal")
# Fields that are read only where another field has one of these values.
READ_FOR = {
    "pixels": ("likelihood", GREY),
    "structure": ("likelihood", GREY),
    "least_scale": ("likelihood", GREY),
    "alpha": ("likelihood", ("logit-normal",)),
    "pseudo_inputs": ("prior", ("vamp",)),
    "free_bits": ("objective", ("elbo",)),
    "edges": ("posterior", ("tree",)),
    "kl": ("objective", ("elbo",)),
}
OF_LAYERS = ("head", "free_bits")
OF_ONE_LAYER = ("posterior", "latent", "edges", "kl")
# Left out of the identity where they have their defaults, so that runs begun before they existed go on; but `head`
# where it is that of the first runs of several layers.
FIRST_HEAD = "residual"
ADDED = (
    *("likelihood", "decoder", "pixels", "structure", "alpha"),
    *("edges", "encoder_hidden", "prior", "warm_up", "objective", "importance_samples"),
    *("layers", "free_bits", "averaging", "importance_epochs", "pseudo_inputs", "natural_gradient"),
)


@dataclass(frozen=True)
class Config:
    """One training run; the defaults are close to the poster's recipe.

    Args:
        posterior: graph of the approximate posterior: diagonal, chain, tree, extended-grid, block-chain or full, whose
            encoder emits the factor; or a grid whose encoder emits a precision of a family: grid-dominant, grid-scaled,
            grid-edge or grid-spectral.
        latent: number of latent variables; grids and block-chain arrange them in the squarest rows × columns.
        hidden: width of each of the two hidden layers of encoder and decoder.
        epochs: passes over the training digits; the learning rate falls to 0.3 × at 60 % and to 0.1 × at 85 % of them.
        batch: digits a step.
        learning_rate: of Adam, at the start.
        seed: of the weights, the order, the binarisation and the noise; 0 … 2⁶⁴ − 1.
        split: 50k (50,000 / 10,000 validation / 10,000 test digits) or 60k (60,000 / none / 10,000).
        kl: exact (closed form), sampled (log q(z) - log p(z) at the one sample), or path (the same number, whose
            gradient goes through the sample alone); for the objective elbo alone.
        tracked: test digit whose posterior is recorded every epoch.
        precision: 32-true or 64-true: weights in float32 or float64.
        likelihood: bernoulli (of binarised pixels), levels (probability of the 256 grey levels) or logit-normal
            (density of dequantised grey levels); the last two are Gaussian graphical models of the pixels' logits.
        decoder: dense or convolutional.
        pixels: graph of the pixels' logits: diagonal, extended-grid, stencil-3 or stencil-5; not for bernoulli.
        structure: per-image (the decoder emits scales and couplings) or global (learnt once for all images).
        least_scale: least standard deviation of a pixel's logit given its parents, in [e⁻⁵, 1); not for bernoulli.
        alpha: squeezes dequantised numbers into (alpha, 1 - alpha); for logit-normal alone.
        edges: of the tree, as in "0-1 1-5 1-2", each pair of joined latent variables once; empty: those of a binary
            tree. For the posterior tree alone.
        encoder_hidden: width of each of the encoder's hidden layers; 0: as `hidden`.
        prior: standard, N(0, I); or chain, extended-grid or full: a Gaussian of mean 0 whose factor is learnt. Of
            several layers that of the top one, on whose graph it must be; or vamp, the mixture of the posteriors of
            `pseudo_inputs` images that are learnt. The last for layers alone.
        warm_up: epochs in which the weight of the KL rises from 0 to 1, step by step; 0: none.
        objective: elbo; iwae (the bound of `importance_samples`, doubly reparametrised); or piwae (the same for decoder
            and prior; for the encoder the mean of the bounds of groups).
        importance_samples: of an image in a step of iwae or piwae, of which r × c, the squarest product, are r groups.
        layers: several stochastic layers from the top, each size:graph, as in "16:extended-grid 40:block-chain", in the
            place of posterior and latent; empty: one layer.
        head: how the posterior of a layer is made: free (of its prior's kind, not made from it), residual (the prior
            moved in regression coordinates) or potential (the prior times a Gaussian potential). For layers alone.
        free_bits: nats of the KL of each layer that cost nothing, in equal parts for its nodes. For layers, and
            the objective elbo, alone.
        averaging: decay a step of the average of the weights, which is evaluated in their place; 0: none.
        importance_epochs: how many of the last epochs have the objective iwae.
        pseudo_inputs: images of the prior vamp.
        natural_gradient: whether the encoder gets the natural gradient of each posterior in the place of the gradient;
            for one layer, whose encoder emits the factor.
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
    precision: str = "32-true"
    likelihood: str = "bernoulli"
    decoder: str = "dense"
    pixels: str = "diagonal"
    structure: str = "per-image"
    least_scale: float = 0.03
    alpha: float = 1e-6
    edges: str = ""
    encoder_hidden: int = 0
    prior: str = "standard"
    warm_up: int = 0
    objective: str = "elbo"
    importance_samples: int = 8
    layers: str = ""
    head: str = "free"
    free_bits: float = 0.0
    averaging: float = 0.0
    importance_epochs: int = 0
    pseudo_inputs: int = 100
    natural_gradient: bool = False

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            require_one_of(name, getattr(self, name), known)
        for name in ("latent", "hidden", "epochs", "batch", "importance_samples", "pseudo_inputs"):
            require_count(name, getattr(self, name))
        require_integer("tracked, the index of a test digit,", self.tracked, 0, LARGEST_COUNT)
        require_integer("seed", self.seed, 0, LARGEST_SEED)
        for name in ("encoder_hidden", "warm_up", "importance_epochs"):
            require_integer(name, getattr(self, name), 0, LARGEST_COUNT)
        if not (isinstance(self.learning_rate, float | int) and 0.0 < self.learning_rate < math.inf):
            raise ConfigError(f"learning_rate must be positive and finite, got {self.learning_rate}.")
        least = LEAST_ALPHA[self.precision]
        if not (isinstance(self.alpha, float) and least <= self.alpha < 0.5):
            raise ConfigError(
                f"alpha must be at least {least:.1g} in {self.precision} and below 0.5, got {self.alpha}."
            )
        if not (isinstance(self.least_scale, float) and math.exp(-5.0) <= self.least_scale < 1.0):
            raise ConfigError(f"least_scale must be in [exp(-5), 1), got {self.least_scale}.")
        if not (isinstance(self.free_bits, float | int) and 0.0 <= self.free_bits < math.inf):
            raise ConfigError(f"free_bits must be nats, 0 or more, got {self.free_bits}.")
        if not (isinstance(self.averaging, float | int) and 0.0 <= self.averaging < 1.0):
            raise ConfigError(f"averaging must be in [0, 1), got {self.averaging}.")
        if not isinstance(self.natural_gradient, bool):
            raise ConfigError(f"natural_gradient must be true or false, got {self.natural_gradient!r}.")
        self._require_read()
        self._require_layers()
        if self.objective == "piwae" and self.groups < 2:
            raise ConfigError(
                f"piwae needs importance_samples that form two groups or more, got {self.importance_samples}; "
                f"{products_near(self.importance_samples)}."
            )

    def _require_read(self) -> None:
        """Refuse a choice that would be ignored."""
        for name, (choice, readers) in READ_FOR.items():
            value, chosen = getattr(self, name), getattr(self, choice)
            if value != getattr(type(self), name) and chosen not in readers:
                raise ConfigError(f"{name} {value} needs {choice} {' or '.join(readers)}, got {choice} {chosen}.")
        for name in OF_LAYERS if not self.layers else OF_ONE_LAYER:
            if (value := getattr(self, name)) != getattr(type(self), name):
                remedy = f"is of one layer; {self.layers!r} has its own" if self.layers else "needs layers"
                raise ConfigError(f"{name} {value} {remedy}.")
        if self.objective != "elbo" and self.importance_epochs:
            raise ConfigError(f"importance_epochs needs objective elbo before them, got {self.objective}.")
        if self.importance_samples != type(self).importance_samples and not self.has_importance_samples:
            raise ConfigError(
                f"importance_samples {self.importance_samples} needs objective iwae or piwae, or importance_epochs."
            )

    def _require_layers(self) -> None:
        """Raise unless there are such Gaussians, and posteriors of this kind on them."""
        layers = self.latent_layers
        if not layers:
            raise ConfigError(f"layers must name a layer, such as 16:extended-grid, or be empty, got {self.layers!r}.")
        if self.prior == "vamp" and not self.layers:
            raise ConfigError("prior vamp needs layers.")
        if self.prior not in ("standard", "vamp"):
            require_latents(self.prior, layers[0].size)
        if self.layers and self.prior not in ("standard", "vamp", layers[0].name):
            raise ConfigError(f"prior {self.prior} needs a top layer of its graph, got {layers[0].name}.")
        for layer in layers if self.layers and self.head == "residual" else ():
            if not isinstance(layer.family, FactorFamily):
                raise ConfigError(
                    f"head residual needs graphs that are factor-free, got {layer.size}:{layer.name}. "
                    "Use head free or potential."
                )

        if self.natural_gradient and (self.layers or not isinstance(layers[0].family, FactorFamily)):
            raise ConfigError(
                f"natural_gradient needs one layer, its posterior given by L, got {self.latents_in_words}."
            )

    @derived
    def latent_layers(self) -> tuple[Layer, ...]:
        """The stochastic layers, from the top."""
        return layers_of(self.layers) if self.layers else (Layer(self.latent, self.posterior, self.edges),)

    @property
    def latents(self) -> int:
        """Number of latent variables of all layers."""
        return sum(layer.size for layer in self.latent_layers)

    @derived
    def posterior_topologies(self) -> tuple[Topology, ...]:
        """That of each layer's posterior; of a potential's product the same graph and order, since P then has fill."""
        topologies = (layer.topology for layer in self.latent_layers)
        if not self.layers or self.head != "potential":
            return tuple(topologies)
        return tuple(Graph(each.n, each.edges, each.order) for each in topologies)

    @property
    def topology(self) -> Topology:
        """Graph of the posterior of one layer."""
        return self.latent_layers[0].topology

    @derived
    def prior_topology(self) -> Topology | None:
        """Graph of the prior, of the top layer; None for N(0, I), and for a mixture."""
        return None if self.prior in ("standard", "vamp") else latent_topology(self.prior, self.latent_layers[0].size)

    @property
    def has_importance_samples(self) -> bool:
        """Whether some steps have several samples of an image."""
        return self.objective != "elbo" or self.importance_epochs > 0

    @property
    def latents_in_words(self) -> str:
        """Posterior and prior, for a line of text."""
        added = "" if self.prior == "standard" else f", {self.prior} prior"
        added += ", natural gradient" if self.natural_gradient else ""
        if self.layers:
            return f"layers {self.layers}, {self.head} head{added}"
        return f"{self.posterior} posterior, {self.latent} latents{added}"

    def objective_at(self, epoch: int) -> str:
        """Objective of an epoch, counted from 0."""
        return "iwae" if epoch >= self.epochs - self.importance_epochs else self.objective

    def sample_shape_at(self, epoch: int) -> tuple[int, ...]:
        """Axes of the samples of an image in a step of an epoch: none for the ELBO, which has one sample."""
        return () if self.objective_at(epoch) == "elbo" else (self.importance_samples,)

    @property
    def groups(self) -> int:
        """Groups of importance samples, whose bounds the encoder maximises."""
        return squarest(self.importance_samples)[0] if self.objective == "piwae" else 1

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the numbers of an image that a step records."""
        bound = ("bound",) if self.has_importance_samples else ()
        layers = len(self.latent_layers)
        of_layers = tuple(f"kl_{layer}" for layer in range(layers, 0, -1)) if layers > 1 else ()
        return ("reconstruction", "kl", *bound, *of_layers)

    @property
    def encoder_width(self) -> int:
        """Width of the encoder's hidden layers."""
        return self.encoder_hidden or self.hidden

    @property
    def is_grey(self) -> bool:
        """Whether grey levels are modelled, not binarised pixels."""
        return self.likelihood in GREY

    @property
    def pixel_topology(self) -> Topology:
        """Graph of the logits of a grey image."""
        return pixel_topology(self.pixels)

    def identity(self, data: str) -> dict[str, str | int | float]:
        """The facts that two runs must share to have the same numbers on one machine; `data` names the images."""
        facts = asdict(self) | {"accelerator": "cpu"}  # as earlier versions, which had a choice of one, wrote it
        for name in ADDED:
            if facts[name] == getattr(type(self), name):
                del facts[name]
        if not self.layers or self.head == FIRST_HEAD:
            del facts["head"]
        if not self.is_grey:
            del facts["least_scale"]
        keys = [layer.topology.factor_pattern.key for layer in self.latent_layers]
        return {**facts, "data": data, "factor_pattern": " ".join(keys)}

    def learning_rate_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        if epoch < 0.6 * self.epochs:
            return self.learning_rate
        return self.learning_rate * (0.3 if epoch < 0.85 * self.epochs else 0.1)

    def kl_weight_at(self, epochs: float) -> float:
        """Weight of the KL after so many epochs, and parts of one."""
        return min(1.0, epochs / self.warm_up) if self.warm_up else 1.0


def posterior_topology(posterior: str, latent: int, edges: str = "") -> Topology:
    """The topology of that name on `latent` nodes; of a tree with these edges, where there are some.

    Raises:
        ConfigError: the name is unknown, or needs a grid with two rows or more, and these nodes form none; or the edges
            form no tree, or are not asked for.
    """
    return Config(posterior=posterior, latent=latent, edges=edges).topology


def pixel_topology(pixels: str) -> Topology:
    """The graph of that name on the pixels of an image, row by row."""
    require_one_of("pixels", pixels, PIXEL_GRAPHS)
    graphs = {
        "diagonal": Diagonal(PIXELS),
        "extended-grid": ExtendedGrid(SIDE, SIDE),
        "stencil-3": Stencil(SIDE, SIDE, 1),
        "stencil-5": Stencil(SIDE, SIDE, 2),
    }
    return graphs[pixels]


def digest(identity: dict[str, str | int | float]) -> str:
    """SHA-256 of the canonical JSON text."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

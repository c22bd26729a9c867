"""Variational autoencoders whose posterior is a Gaussian graphical model: train, evaluate, compare, plot.

The command `sparseggm` (`sparseggm.cli`) does the same from a shell.
"""

from sparseggm.vae.bounds import Evaluation, evaluate_images
from sparseggm.vae.comparison import GREY_PIXELS, TABLE1, Comparison, compare
from sparseggm.vae.config import LIKELIHOODS, PIXEL_GRAPHS, POSTERIORS, Config, pixel_topology, posterior_topology
from sparseggm.vae.data import Images, load_images
from sparseggm.vae.errors import (
    BusyError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    Interrupted,
    NotWrittenError,
)
from sparseggm.vae.evaluate import evaluate, load_run, report
from sparseggm.vae.figures import figures
from sparseggm.vae.likelihoods import bernoulli_log_likelihood
from sparseggm.vae.model import VAE
from sparseggm.vae.objective import (
    elbo_terms,
    importance_weighted_bound,
    log_importance_weights,
)
from sparseggm.vae.pixel_fit import PixelFit, fit_pixels
from sparseggm.vae.train import EpochRecord, Training, train

__all__ = [
    "GREY_PIXELS",
    "LIKELIHOODS",
    "PIXEL_GRAPHS",
    "POSTERIORS",
    "TABLE1",
    "VAE",
    "BusyError",
    "CheckpointError",
    "Comparison",
    "Config",
    "ConfigError",
    "DataError",
    "DivergedError",
    "EpochRecord",
    "Evaluation",
    "Images",
    "Interrupted",
    "NotWrittenError",
    "PixelFit",
    "Training",
    "bernoulli_log_likelihood",
    "compare",
    "elbo_terms",
    "evaluate",
    "evaluate_images",
    "figures",
    "fit_pixels",
    "importance_weighted_bound",
    "load_images",
    "load_run",
    "log_importance_weights",
    "pixel_topology",
    "posterior_topology",
    "report",
    "train",
]

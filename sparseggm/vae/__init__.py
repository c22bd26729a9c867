"""Variational autoencoders whose posterior is a Gaussian graphical model: train, evaluate, compare, plot.

The command `sparseggm` (`sparseggm.cli`) does the same from a shell.
"""

from sparseggm.vae.config import POSTERIORS, Config, posterior_topology
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
from sparseggm.vae.evaluate import Evaluation, evaluate, evaluate_digits, load_run, report
from sparseggm.vae.figures import figures
from sparseggm.vae.model import VAE
from sparseggm.vae.objective import (
    bernoulli_log_likelihood,
    elbo_terms,
    importance_weighted_bound,
    log_importance_weights,
)
from sparseggm.vae.pixels import PixelFit, fit_pixels
from sparseggm.vae.table1 import POSTER, table1
from sparseggm.vae.train import EpochRecord, Training, train

__all__ = [
    "POSTER",
    "POSTERIORS",
    "VAE",
    "BusyError",
    "CheckpointError",
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
    "elbo_terms",
    "evaluate",
    "evaluate_digits",
    "figures",
    "fit_pixels",
    "importance_weighted_bound",
    "load_images",
    "load_run",
    "log_importance_weights",
    "posterior_topology",
    "report",
    "table1",
    "train",
]

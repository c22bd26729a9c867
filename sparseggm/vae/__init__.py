"""Variational autoencoders whose posterior is a Gaussian graphical model: train, evaluate, compare, plot.

The command `sparseggm` (`sparseggm.cli`) does the same from a shell.
"""

from sparseggm.vae.bounds import Evaluation, evaluate_images
from sparseggm.vae.config import LIKELIHOODS, PIXEL_GRAPHS, POSTERIORS, Config, pixel_topology, posterior_topology
from sparseggm.vae.data import Images, load_images
from sparseggm.vae.errors import (
    MISTAKES,
    BusyError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    FailedRunError,
    Interrupted,
    NotWrittenError,
)
from sparseggm.vae.evaluate import evaluate, load_run, report
from sparseggm.vae.experiments import (
    EXPERIMENTS,
    GREY_PIXELS,
    LAYERS,
    NATURAL_GRADIENT,
    TABLE1,
    Experiment,
    experiment,
)
from sparseggm.vae.figures import figures
from sparseggm.vae.history import EpochRecord
from sparseggm.vae.interpolation import interpolate, report_of_lines
from sparseggm.vae.ladder import LadderVAE
from sparseggm.vae.likelihoods import bernoulli_log_likelihood
from sparseggm.vae.model import VAE, ImageModel
from sparseggm.vae.objective import (
    elbo_terms,
    importance_weighted_bound,
    importance_weighted_terms,
    log_importance_weights,
)
from sparseggm.vae.pixel_fit import PixelFit, fit_pixels
from sparseggm.vae.processes import is_first
from sparseggm.vae.results import results
from sparseggm.vae.train import Training, train
from sparseggm.vae.trees import chow_liu

__all__ = [
    "EXPERIMENTS",
    "GREY_PIXELS",
    "LAYERS",
    "LIKELIHOODS",
    "MISTAKES",
    "NATURAL_GRADIENT",
    "PIXEL_GRAPHS",
    "POSTERIORS",
    "TABLE1",
    "VAE",
    "BusyError",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "DivergedError",
    "EpochRecord",
    "Evaluation",
    "Experiment",
    "FailedRunError",
    "ImageModel",
    "Images",
    "Interrupted",
    "LadderVAE",
    "NotWrittenError",
    "PixelFit",
    "Training",
    "bernoulli_log_likelihood",
    "chow_liu",
    "elbo_terms",
    "evaluate",
    "evaluate_images",
    "experiment",
    "figures",
    "fit_pixels",
    "importance_weighted_bound",
    "importance_weighted_terms",
    "interpolate",
    "is_first",
    "load_images",
    "load_run",
    "log_importance_weights",
    "pixel_topology",
    "posterior_topology",
    "report",
    "report_of_lines",
    "results",
    "train",
]

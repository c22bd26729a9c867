"""The command `evaluate`: bounds of the held-out images of a run, into its folder, and the lines that show them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sparseggm.errors import NonFiniteError, NonPositiveError
from sparseggm.files import DAMAGE, write_atomically, write_json
from sparseggm.positivity.families import FactorFamily
from sparseggm.vae.bounds import Evaluation, evaluate_images
from sparseggm.vae.checks import require_count
from sparseggm.vae.config import FIRST_HEAD, PIXELS, Config
from sparseggm.vae.data import Images, load_images
from sparseggm.vae.diagnostics import largest_shape
from sparseggm.vae.errors import CheckpointError, ConfigError, DivergedError, NotWrittenError
from sparseggm.vae.files import checkpoint
from sparseggm.vae.ladder import averaged, untrained
from sparseggm.vae.likelihoods import BINARIZATION_SEED, held_out
from sparseggm.vae.model import ImageModel
from sparseggm.vae.refinement import SETTINGS
from sparseggm.vae.train import progress_bar

PARTS = ("test", "validation")
SUMMARY, ARRAYS = "evaluation.json", "evaluation.npz"
UPPER_HALF = torch.arange(PIXELS, device="cpu") < PIXELS // 2
HIDDEN = {"nothing": None, "upper": UPPER_HALF}
"""What may be hidden of an image. Upper rows come first in elimination, so that levels are sampled given all others."""


def evaluate(
    run: Path,
    samples: int = 500,
    part: str = "test",
    data: Path | None = None,
    *,
    hide: str = "nothing",
    refine: int = 0,
) -> dict[str, Any]:
    """Evaluate a run, and write `evaluation.json` and per-image `evaluation.npz` into it.

    Args:
        run: directory that was given to `sparseggm train` as --out.
        samples: importance samples an image.
        part: "test" or "validation".
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
        hide: "upper" estimates log p(upper half | lower half) too; "nothing" does not.
        refine: natural-gradient steps on the posterior of each image, see `refinement`; 0: as the encoder gives it.
    Returns:
        The summary, as in the JSON file.
    Raises:
        CheckpointError: there is no usable checkpoint, or it was trained on other images than were found.
        ConfigError: there is no such part, or it is empty; a posterior that cannot be refined.
        DivergedError: the weights are so large that a bound is not finite.
        NotWrittenError: the result could not be written; the error carries it.
    """
    require_count("samples", samples)
    require_steps(refine)
    require_hideable(hide)
    if part not in PARTS:
        raise ConfigError(f"unknown part {part!r}; one of: {', '.join(PARTS)}.")
    config, vae, state = load_run(run)
    require_refinable(refine, config)
    images = images_of(run, state, config, vae, part, data)

    began = time.perf_counter()
    with progress_bar("evaluate", len(images)) as bar:
        evaluation = _finite(
            run,
            lambda: evaluate_images(vae, images, samples, advance=bar.update, hidden=HIDDEN[hide], refine=refine),
        )
    result: dict[str, Any] = {
        **evaluation.summary(),
        **(evaluation.in_bits() if config.is_grey else {}),
        "unit": "nats an image",
        "part": part,
        "images": len(images),
        "samples": samples,
        "hidden": hide,
        "refinement": SETTINGS | {"steps": refine} if refine else None,
        "seconds": round(time.perf_counter() - began, 3),
        "epochs_trained": state["epoch"],
        "binarization_seed": BINARIZATION_SEED,
        "run": state["identity"],
        "versions": checkpoint.versions(),
    }
    _write(run, result, evaluation)
    return result


def require_hideable(hide: str) -> None:
    """Raise a ConfigError unless there is such a part of an image."""
    if hide not in HIDDEN:
        raise ConfigError(f"unknown hide {hide!r}; one of: {', '.join(HIDDEN)}.")


def require_steps(refine: int) -> None:
    """Raise a ConfigError unless it is a number of steps."""
    if refine != 0:
        require_count("refine, if not 0,", refine)


def require_refinable(refine: int, config: Config) -> None:
    """Raise a ConfigError if steps are asked for of a posterior that is not given by its factor."""
    if refine and (config.layers or not isinstance(config.latent_layers[0].family, FactorFamily)):
        raise ConfigError(f"refine needs one layer, its posterior given by L, got {config.latents_in_words}.")


def images_trained_on(run: Path, state: dict[str, Any], config: Config, data: Path | None) -> Images:
    """The images by the name that a run's checkpoint has for its own."""
    found = load_images(data, config.split)
    if found.name != state["identity"]["data"]:
        raise CheckpointError(f"{run}: trained on {state['identity']['data']}, found {found.name}. {found.notice}")
    return found


def images_of(
    run: Path, state: dict[str, Any], config: Config, vae: ImageModel, part: str, data: Path | None
) -> Tensor:
    """The held-out images as the run's likelihood observes them."""
    found = images_trained_on(run, state, config, data)
    images = held_out(vae.likelihood, found, part)
    if not len(images):
        raise ConfigError(f"the split {config.split} has no validation images; evaluate the test images.")
    return images


def stored_evaluation(run: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The result and the arrays that the last `evaluate` left in the folder of a run; None if there are none.

    Raises:
        CheckpointError: the files are damaged, or not of one evaluation, as one that was stopped between them leaves.
    """
    path = run / SUMMARY
    if not (path.exists() and (run / ARRAYS).exists()):
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        with np.load(run / ARRAYS) as found:
            arrays = {name: found[name] for name in found}
        means = [name for name in arrays if name in result]
        are_of_one = "elbo" in means and all(
            math.isclose(result[name], arrays[name].mean(), rel_tol=1e-12) for name in means
        )
    except DAMAGE as error:
        raise CheckpointError(f"{path}, or its arrays: damaged ({error}). Evaluate the run again.") from error
    if not are_of_one:
        raise CheckpointError(f"{path}, and its arrays: not of one evaluation. Evaluate the run again.")
    return result, arrays


def _write(run: Path, result: dict[str, Any], evaluation: Evaluation) -> None:
    try:
        write_json(run / SUMMARY, result)
        write_atomically(run / ARRAYS, lambda file: np.savez(file, **evaluation.columns()))
    except OSError as error:
        raise NotWrittenError(error, result) from error


def _finite(run: Path, evaluated: Callable[[], Evaluation]) -> Evaluation:
    try:
        evaluation = evaluated()
    except (NonFiniteError, NonPositiveError) as error:  # the Gaussian raises before the bounds are formed
        raise DivergedError(f"{run}: its weights are too large for its arithmetic ({error})") from error
    bad = [name for name, values in evaluation.columns().items() if not np.isfinite(values).all()]
    if bad:
        raise DivergedError(f"{run}: its weights are too large for its arithmetic ({', '.join(bad)} not finite).")
    return evaluation


def report(result: dict[str, Any]) -> str:
    """Lines that show the result of `evaluate`."""
    run, config = result["run"], _config_of(result["run"])
    bits = {name: _in_bits(result, name) if "elbo_bits" in result else "" for name in ("elbo", "log_p")}
    hidden = ""
    if "log_p_hidden" in result:
        hidden = f"log p({result['hidden']} half | the other)  {_with_error(result, 'log_p_hidden')} nats an image\n"
    few = f" ({_with_error(result, 'log_p_200').strip()} with 200)" if "log_p_200" in result else ""
    refinement = f", refined by {result['refinement']['steps']} steps" if result["refinement"] else ""
    return (
        f"{run['data']}, {config.latents_in_words}{refinement}, {_pixels(config)}seed {run['seed']}, "
        f"{result['epochs_trained']} epochs; "
        f"{result['images']:,} {result['part']} images, {result['samples']} samples\n"
        f"ELBO      {_with_error(result, 'elbo')} nats an image{bits['elbo']}\n"
        f"log p(x)  {_with_error(result, 'log_p')} nats an image{bits['log_p']}{few}\n"
        f"gap       {_with_error(result, 'gap')} nats an image\n"
        f"{hidden}"
        f"{_diagnostics(result)}; {result['seconds']:.1f} s"
    )


def _diagnostics(result: dict[str, Any]) -> str:
    """Lines on the posteriors and on the importance weights."""
    layers = result.get("layers", [result])
    numbers = [f"z{len(layers) - index}: " for index in range(len(layers))] if len(layers) > 1 else [""]
    of_layers = "".join(
        f"{number}KL {each['kl']:.2f} nats; {each['active_units']} of {each['units']} units active; "
        f"correlations on the edges: mean {each['correlation_rms']:.3f}, "
        f"over images ± {each['correlation_deviation_rms']:.3f} (rms)\n"
        for number, each in zip(numbers, layers, strict=True)
    )
    lines = (
        f"{of_layers}"
        f"effective samples: mean {result['effective_samples_mean']:.1f}, least {result['effective_samples_min']:.1f}"
    )
    if "pareto_k_mean" not in result:
        return lines
    return (
        f"{lines}\nPareto k: mean {result['pareto_k_mean']:.2f}, largest {result['pareto_k_max']:.2f}, "
        f"{result['pareto_k_trusted']:.1%} of the images up to {largest_shape(result['samples']):.2f}"
    )


def _with_error(result: dict[str, Any], name: str) -> str:
    return f"{result[name]:8.3f} ± {result[f'{name}_standard_error']:.3f}"


def _in_bits(result: dict[str, Any], name: str) -> str:
    return f", {result[f'{name}_bits']:.4f} ± {result[f'{name}_bits_standard_error']:.4f} bits per dimension"


def _pixels(config: Config) -> str:
    """What concerns the pixels of grey images."""
    if not config.is_grey:
        return ""
    alpha = f", alpha {config.alpha}" if config.likelihood == "logit-normal" else ""
    return f"{config.likelihood} {config.pixels} {config.structure} pixels{alpha}, "


def _config_of(identity: dict[str, Any]) -> Config:
    """The recipe of a run, of which the identity leaves out some defaults."""
    names = {field.name for field in fields(Config)}
    facts = {name: value for name, value in identity.items() if name in names}
    return Config(**({"head": FIRST_HEAD} if "layers" in facts else {}) | facts)


def load_run(run: Path) -> tuple[Config, ImageModel, dict[str, Any]]:
    """Configuration, trained model and whole checkpoint of a run; averaged weights where there are some.

    Raises:
        CheckpointError: no usable checkpoint there.
    """
    path = run / checkpoint.CHECKPOINT
    state = checkpoint.load(path)
    with checkpoint.restoring(path):
        config = _config_of(state["identity"])
        checkpoint.continued(path, state, config.identity(state["identity"]["data"]))
        checkpoint.require_history(path, state, config)
        vae = untrained(config)
        if config.averaging:
            average = averaged(vae, config.averaging)
            average.load_state_dict(state["average"])
            vae = cast(ImageModel, average.module)
        else:
            vae.load_state_dict(state["model"])
    return config, vae.eval(), state

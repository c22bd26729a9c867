"""Experiments: models that differ in a few words of their recipe, trained and evaluated alike, and their table.

An experiment is one folder: a run for each model and seed, the table as JSON and as Markdown. It is resumed as runs
are: what is finished is not done again, what was begun goes on, and a larger number of epochs extends finished runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparseggm.files import write_atomically, write_json
from sparseggm.vae import processes
from sparseggm.vae.checks import require_count
from sparseggm.vae.config import PIXEL_GRAPHS, POSTERIORS, Config
from sparseggm.vae.data import Images, load_images
from sparseggm.vae.errors import CheckpointError, ConfigError
from sparseggm.vae.evaluate import require_hideable, require_refinable, require_steps, stored_evaluation
from sparseggm.vae.files import checkpoint
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.sweep import EvaluationOptions, Run, in_processes, in_turns
from sparseggm.vae.tables import Row, markdown, rows_of
from sparseggm.vae.train import require_startable

Reference = tuple[float, float]


@dataclass(frozen=True)
class Experiment:
    """Which models are compared, and how the result is called.

    Args:
        name: of the command and of the files written.
        title: of the table.
        models: by name, what each changes of the recipe.
        shown: the models that are compared by default; the others are compared with the first.
        published: (log p(x), its lower bound) of models, nats an image, shown beside ours.
        steps: of a run by default: a first look. On the subset, with fewer steps an epoch, many more would overfit.
        recipe: what the experiment has in the place of the defaults of `Config`.
        pairs: models and others with which the page of results compares them besides the first: most differ in graph
            or head alone.
        trees: models whose `edges` are the Chow–Liu tree of another model's run of the same seed, by that model.
    """

    name: str
    title: str
    models: Mapping[str, Mapping[str, Any]]
    shown: tuple[str, ...]
    published: Mapping[str, Reference]
    steps: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()
    trees: Mapping[str, str] = field(default_factory=dict)


def experiment(
    what: Experiment,
    recipe: Config,
    out: Path,
    models: Sequence[str] | None = None,
    seeds: int = 1,
    epochs: int | None = None,
    samples: int = 500,
    data: Path | None = None,
    *,
    hide: str = "nothing",
    refine: int = 0,
    jobs: int = 1,
    resume: bool = False,
) -> list[Row]:
    """Train, evaluate, print, and write the table as JSON and as Markdown.

    Args:
        what: the models.
        recipe: all that the models share.
        out: each run goes to out/seed-S/MODEL.
        models: some of `what.models`; None: those that are shown by default. The first is the base line.
        seeds: how many seeds: 0, 1, ….
        epochs: of each run; None: as many as make `what.steps`. More than finished runs have extends them.
        samples: importance samples an image.
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
        hide, refine: see `evaluate`.
        jobs: runs at once, each in a process of its own; 1: here, the models of a seed in turns of an epoch, so that
            their seconds an epoch can be compared even on a busy machine.
        resume: continue what is in `out`.
    Raises:
        ConfigError, CheckpointError: some run cannot start; then no run was started.
        FailedRunError: a run ended in an error. The others were saved.
        Interrupted: a signal came; all runs were saved.
    """
    for name, value in {"samples": samples, "seeds": seeds, "jobs": jobs}.items():
        require_count(name, value)
    if processes.count() > 1:
        raise ConfigError(f"{what.name}: needs one process, got {processes.count()}. Over several: sparseggm train.")
    require_hideable(hide)
    require_steps(refine)
    runs, images = _planned(what, recipe, out, what.shown if models is None else tuple(models), seeds, epochs, data)
    for run in runs:
        require_refinable(refine, run.config)
    _require_startable_alike(runs, images, data, resume)
    options = EvaluationOptions(samples, hide, refine, data)
    with ExitStack() as locks:
        # Runs in processes of their own lock their folders themselves.
        for directory in (out, *((run.out for run in runs) if jobs == 1 else ())):
            locks.enter_context(only_process(directory))
        print(images.notice, flush=True)
        results = in_turns(runs, images, options, resume) if jobs == 1 else in_processes(runs, options, jobs, resume)
        settings = {"samples": samples, "hidden": hide, "refine": refine, "jobs": jobs}
        return _write_table(what, out, runs, results, settings)


def _planned(
    what: Experiment,
    recipe: Config,
    out: Path,
    models: tuple[str, ...],
    seeds: int,
    epochs: int | None,
    data: Path | None,
) -> tuple[list[Run], Images]:
    """The runs, seed by seed, and the images."""
    if not models or len(set(models)) != len(models):
        raise ConfigError(f"{what.name}: models must be given, each once; got {' '.join(models)}.")
    for name in models:
        if name not in what.models:
            raise ConfigError(f"{what.name}: unknown model {name!r}; one of: {', '.join(what.models)}.")
        if what.trees.get(name, name) not in models:
            raise ConfigError(f"{what.name}: the model {name} needs the model {what.trees[name]} beside it.")
    configs = {
        (seed, name): replace(recipe, **what.models[name], seed=seed, epochs=1 if epochs is None else epochs)
        for seed in range(seeds)
        for name in models
    }
    images = load_images(data, recipe.split)
    if epochs is None:
        epochs = max(1, round(what.steps * recipe.batch / len(images.train)))
    runs = {
        key: Run(key[1], replace(config, epochs=epochs), out / f"seed-{key[0]}" / key[1])
        for key, config in configs.items()
    }
    for (seed, name), run in runs.items():
        if name in what.trees:
            runs[seed, name] = replace(run, after=runs[seed, what.trees[name]])
    return list(runs.values()), images


def _require_startable_alike(runs: Sequence[Run], images: Images, data: Path | None, resume: bool) -> None:
    """Raise unless every run can start or go on, and all that are extended are so from the same numbers of epochs."""
    extended = {}
    for run in runs:
        begun = run.is_begun(resume)
        config = run.resolved(data, resume).config if begun else run.config  # else its edges may not be known yet
        identity = require_startable(config, images, run.out, resume=begun)
        extended[run.name] = str(identity.get(checkpoint.EXTENDED, ""))
    (first, usual), *others = extended.items()
    for name, epochs in others:
        if epochs != usual:
            raise CheckpointError(
                f"{first}, {_in_words(usual)}, and {name}, {_in_words(epochs)}, cannot be compared: their learning "
                "rates differ. Ask for the same models and seeds, or choose another --out."
            )


def _in_words(extended: str) -> str:
    return f"extended after {extended} epochs" if extended else "trained at once"


def _write_table(
    what: Experiment, out: Path, runs: Sequence[Run], results: Sequence[dict[str, Any]], settings: Mapping[str, Any]
) -> list[Row]:
    one_seed = len({run.config.seed for run in runs}) == 1
    per_image = {run.model: _arrays_of(run) for run in runs} if one_seed else None
    rows = rows_of(results, per_image)
    content = {
        "experiment": what.name,
        "title": what.title,
        "data": results[0]["run"]["data"],
        "epochs": runs[0].config.epochs,
        **settings,
        "seeds": sorted({run.config.seed for run in runs}),
        "unit": "nats an image; seconds an epoch",
        "rows": [vars(row) for row in rows],
        "published": dict(what.published),
        "runs": list(results),
        "versions": checkpoint.versions(),
    }
    table = markdown(content)
    print(f"\n{table}", flush=True)  # before writing: a full disk then loses the files, not the result
    files = out / f"{what.name}.json", out / f"{what.name}.md"
    write_json(files[0], content)
    write_atomically(files[1], lambda file: file.write(table.encode()))
    print(f"written to {files[0]} and {files[1]}")
    return rows


def _arrays_of(run: Run) -> dict[str, Any]:
    stored = stored_evaluation(run.out)
    assert stored is not None  # the run was evaluated
    return stored[1]


TABLE1 = Experiment(
    name="table1",
    title="Table 1",
    models={
        **{name: {"posterior": name} for name in POSTERIORS},
        "wide-diagonal": {"posterior": "diagonal", "encoder_hidden": 204},  # 64 weights more than extended-grid has
        "chow-liu-tree": {"posterior": "tree"},
        "chain-prior": {"posterior": "chain", "prior": "chain"},
        "extended-grid-prior": {"posterior": "extended-grid", "prior": "extended-grid"},
    },
    shown=("diagonal", "chain", "grid-spectral", "extended-grid"),
    published={"diagonal": (-89.2, -93.4), "chain": (-89.1, -93.4), "extended-grid": (-88.8, -93.0)},  # the poster's
    steps=4_700,
    pairs=(
        ("tree", "chain"),
        ("chow-liu-tree", "tree"),
        ("grid-spectral", "grid-dominant"),
        ("grid-spectral", "grid-scaled"),
        ("grid-spectral", "grid-edge"),
        ("extended-grid", "grid-spectral"),
        ("extended-grid", "wide-diagonal"),
        ("full", "extended-grid"),
        ("chain-prior", "chain"),
        ("extended-grid-prior", "extended-grid"),
    ),
    trees={"chow-liu-tree": "full"},
)
GREY_PIXELS = Experiment(
    name="pixels",
    title="Grey pixels",
    models={name: {"pixels": name} for name in PIXEL_GRAPHS},
    shown=("diagonal", "extended-grid"),
    published={},
    steps=2_000,
    recipe={"likelihood": "levels", "learning_rate": 2e-3},
)
_STRUCTURED = {"layers": "16:extended-grid 40:block-chain", "head": "residual", "free_bits": 0.5}
_INDEPENDENT = {**_STRUCTURED, "layers": "16:diagonal 40:diagonal"}
_IMPORTANCE_WEIGHTED = {
    "layers": "40:extended-grid 40:block-chain",
    "head": "free",
    "free_bits": 0.5,
    "averaging": 0.999,
    "importance_epochs": 20,
}
LAYERS = Experiment(
    name="layers",
    title="Two stochastic layers",
    models={
        "diagonal": _INDEPENDENT,
        "diagonal-potential": {**_INDEPENDENT, "head": "potential"},
        "diagonal-free": {**_INDEPENDENT, "head": "free"},
        "structured": _STRUCTURED,
        "structured-potential": {**_STRUCTURED, "head": "potential"},
        "structured-free": {**_STRUCTURED, "head": "free"},
        "structured-prior": {**_STRUCTURED, "head": "free", "prior": "extended-grid"},
        "without-free-bits": {**_STRUCTURED, "head": "free", "free_bits": 0.0},
        "one-layer": {"posterior": "extended-grid"},
        "importance-weighted": {**_IMPORTANCE_WEIGHTED, "prior": "extended-grid"},
        "importance-weighted-vamp": {**_IMPORTANCE_WEIGHTED, "prior": "vamp", "pseudo_inputs": 200},
    },
    shown=("diagonal-free", "structured-free"),
    published={},
    steps=4_700,
    pairs=(
        ("structured", "diagonal"),
        ("structured-free", "diagonal-free"),
        ("structured-potential", "diagonal-potential"),
        ("diagonal-potential", "diagonal"),
        ("diagonal-potential", "diagonal-free"),
        ("structured-free", "structured"),
        ("structured-free", "structured-potential"),
        ("structured-free", "diagonal-potential"),
    ),
    recipe={"hidden": 300},
)
NATURAL_GRADIENT = Experiment(
    name="natural-gradient",
    title="Natural gradients of the posterior",
    models={
        **{name: {"posterior": name} for name in ("diagonal", "extended-grid")},
        **{f"{name}-natural": {"posterior": name, "natural_gradient": True} for name in ("diagonal", "extended-grid")},
    },
    shown=("extended-grid", "extended-grid-natural"),
    published={},
    steps=4_700,
)
EXPERIMENTS = {each.name: each for each in (TABLE1, GREY_PIXELS, LAYERS, NATURAL_GRADIENT)}

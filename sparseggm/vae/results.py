"""A page of results, written from the JSON of experiments: command, time, table, and what its intervals say.

Tables and claims have no number of their own: whoever doubts one runs the command above it. A note that a person wrote
stands in NAME.txt beside NAME.json, a picture in NAME.png.
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from sparseggm.files import write_atomically
from sparseggm.vae.config import Config
from sparseggm.vae.errors import CheckpointError
from sparseggm.vae.experiments import EXPERIMENTS
from sparseggm.vae.files import checkpoint
from sparseggm.vae.tables import Result, Row, has_one_version, markdown, rows_of

HEAD = """# Results

Written by `sparseggm results` from the JSON files in `{folder}`, which `sparseggm experiment` wrote. Differences are
paired: both models had the same seeds, images, binarisation and noise. An interval of 95 % that holds 0 shows nothing.
One in twenty misses the truth; one to which seeds were added after a look at it, somewhat more often.
"""
BOUNDS = {"elbo_gain": "ELBO", "log_p_gain": "log p(x)", "log_p_hidden_gain": "log p(hidden half)"}


def results(folder: Path, out: Path | None = None) -> Path:
    """Write the page.

    Args:
        folder: of JSON files of experiments, with texts and pictures of the same names.
        out: the page; None: FOLDER.md beside the folder.
    Returns:
        The page's path.
    Raises:
        CheckpointError: there is no JSON of an experiment, or one that cannot be read.
    """
    whole = folder.resolve()  # of "." too
    out = whole.parent / f"{whole.name}.md" if out is None else out
    pages = [(path, content) for path in sorted(folder.glob("*.json")) if (content := _content(path))]
    if not pages:
        raise CheckpointError(f"results: needed a folder with a JSON of `sparseggm experiment`: {folder}.")
    text = HEAD.format(folder=whole.name) + "".join(_section(path, content, out) for path, content in pages)
    write_atomically(out, lambda file: file.write(text.encode()))
    return out


def _content(path: Path) -> Result | None:
    with checkpoint.restoring(path, _no_experiment):
        content: Result = json.loads(path.read_text(), parse_constant=_no_number)
        return content if content.get("experiment") in EXPERIMENTS else None


def _no_experiment(path: Path, reason: str) -> CheckpointError:
    reason = " ".join(reason.split())
    return CheckpointError(f"{path}: not the JSON of an experiment ({reason}). Take it out of the folder.")


def _no_number(word: str) -> float:
    raise ValueError(f"it holds {word}")


def _section(path: Path, content: Result, out: Path) -> str:
    with checkpoint.restoring(path, _no_experiment):
        parts = [
            f"## {content['title']}: {path.stem}",
            "\n".join(f"    {line}" for line in commands(content)),
            _time(content),
            markdown(content).strip(),
            "\n".join(f"* {claim}" for claim in claims(content)),
        ]
    if (note := path.with_suffix(".txt")).exists():
        parts.append(note.read_text().strip())
    if (picture := path.with_suffix(".png")).exists():
        parts.append(f"![{content['title']}]({Path(os.path.relpath(picture, out.parent)).as_posix()})")
    return "\n" + "\n\n".join(part for part in parts if part) + "\n"


def commands(content: Result) -> list[str]:
    """What makes an experiment's JSON: a command, and one for each time that finished runs were extended."""
    experiment, run = EXPERIMENTS[content["experiment"]], content["runs"][0]["run"]
    varied = {name for changes in experiment.models.values() for name in changes} | {"seed", "epochs"}
    defaults = {field.name: field.default for field in fields(Config)}
    had = defaults | run  # a run says nothing of what is as in `Config`, which an experiment may have otherwise
    usual = defaults | dict(experiment.recipe)
    changed = {name: had[name] for name in usual if name not in varied and had[name] != usual[name]}
    asked = {"seeds": len(content["seeds"]), "epochs": "{epochs}", "samples": content["samples"]}
    asked |= {"jobs": content["jobs"]} if content["jobs"] > 1 else {}
    asked |= {"refine": content["refine"]} if content["refine"] else {}
    asked |= {"hide": content["hidden"]} if content["hidden"] != "nothing" else {}
    options = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in {**changed, **asked}.items())
    models = " ".join(row["model"] for row in content["rows"])
    whole = f"sparseggm experiment {experiment.name} --models {models} {options}"
    stages = [*run.get(checkpoint.EXTENDED, "").split(), str(content["epochs"])]
    resumed = ["", *(len(stages) - 1) * [" --resume"]]
    return [whole.replace("'{epochs}'", epochs) + more for epochs, more in zip(stages, resumed, strict=True)]


def _time(content: Result) -> str:
    training = sum(run["training_seconds"] for run in content["runs"])
    evaluation = sum(run["seconds"] for run in content["runs"])
    count = len(content["runs"])
    at_once = f"{content['jobs']} at once" if has_one_version(content) else "by several commands"
    return (
        f"{count} run{'s' * (count > 1)}: {_hours(training)} of training and {_hours(evaluation)} of evaluation, "
        f"{at_once}."
    )


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def claims(content: Result) -> list[str]:
    """A sentence for each difference whose 95 % interval does not hold 0, and one that names the others.

    None of a single seed, whose intervals are over images: another seed may say otherwise.
    """
    if len(content["seeds"]) == 1:
        return ["One seed: no claim about the models, only about these runs of them."]
    shown, open_ = [], []
    for base, row in _comparisons(content):
        unclear = []
        for gain, bound in BOUNDS.items():
            interval: Any = getattr(row, gain)
            if interval is None:
                continue
            mean, half = interval
            if abs(mean) > half > 0.0:
                word = "above" if mean > 0 else "below"
                shown.append(f"{row.model} is {abs(mean):.2f} ± {half:.2f} nats {word} {base} in {bound}.")
            else:
                unclear.append(f"{bound} {mean:+.2f} ± {half:.2f}")
        open_ += [f"{row.model} and {base} ({', '.join(unclear)})"] if unclear else []
    return [*shown, *([f"Not told apart: {'; '.join(open_)}."] if open_ else [])]


def _comparisons(content: Result) -> list[tuple[str, Row]]:
    """Each model's row beside the first model, and beside those that its experiment names."""
    rows = [Row(**row) for row in content["rows"]]
    base, models = rows[0].model, {row.model for row in rows}
    runs = {model: [run for run in content["runs"] if run["model"] == model] for model in models}
    pairs = EXPERIMENTS[content["experiment"]].pairs
    further = [(model, other) for model, other in pairs if {model, other} <= models - {base}]
    return [(base, row) for row in rows[1:]] + [
        (other, rows_of(runs[other] + runs[model])[1]) for model, other in further
    ]

"""The command `sparseggm`: train, evaluate, table1, figures.

Every option can also stand in a YAML file named by `--config`; options on the command line come after it and win.
A user's mistake is one line on stderr and exit status 2; Ctrl-C saves, says how to go on, and exits with 130.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from sparseggm.vae import Config

MISTAKE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    # Torch's OpenMP threads spin while they wait: where another program wants a core too, a step was seen to take
    # 450 ms in place of 6. Threads that give up after a short spin take 20 ms there, and 7 on an idle machine; threads
    # that never spin 12. The setting is read when torch is imported, and the user's own goes first.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        # Heavy, and optional: `import sparseggm` needs neither.
        from jsonargparse import ArgumentError

        from sparseggm import vae
    except ImportError as error:
        if error.name is None or error.name.startswith("sparseggm"):
            raise  # a fault of ours, not a missing package
        return _complain(f"sparseggm: needed the package {error.name}. Get it by: pip install 'sparseggm[train]'")
    try:
        options = parser().parse_args(None if arguments is None else list(arguments))
    except ArgumentError as error:
        return _complain(f"sparseggm: {' '.join(str(error).split())}")
    try:
        run(options)
    except vae.Interrupted as stopped:
        _complain(f"\n{stopped} Go on with: {resuming_command(options)}")
        return 128 + stopped.signal
    except KeyboardInterrupt:
        _complain("\nstopped.")
        return 128 + signal.SIGINT
    except (vae.DataError, vae.ConfigError, vae.CheckpointError, vae.DivergedError) as error:
        return _complain(f"sparseggm {options.command}: {error}")
    return 0


def parser() -> ArgumentParser:
    """The four commands; options of the recipe come from `vae.Config`, with their help from its docstring."""
    from jsonargparse import ArgumentParser

    whole = ArgumentParser(prog="sparseggm", description=__doc__, exit_on_error=False)
    commands = whole.add_subcommands(dest="command")
    for name, summary, add_options in (
        ("train", "train one model", _train_options),
        ("evaluate", "ELBO and log p(x) of held-out digits", _evaluate_options),
        ("table1", "train and compare the models of the poster's Table 1", _table1_options),
        ("figures", "draw the figures of runs", _figures_options),
    ):
        command = ArgumentParser(description=summary, exit_on_error=False)
        command.add_argument("--config", action="config", help="YAML file of options")
        add_options(command)
        commands.add_subcommand(name, command, help=summary)
    return whole


def run(options: Namespace) -> None:
    """Do what was asked."""
    from sparseggm import vae

    asked = options[options.command]
    if options.command == "train":
        vae.train(_recipe(asked), asked.out, asked.data, resume=asked.resume)
    elif options.command == "evaluate":
        print(vae.report(vae.evaluate(asked.run, asked.samples, asked.part, asked.data)))
    elif options.command == "table1":
        vae.table1(
            _recipe(asked),
            asked.out,
            tuple(asked.posteriors),
            tuple(asked.seeds),
            asked.epochs,
            asked.samples,
            asked.data,
            resume=asked.resume,
        )
    else:
        for path in vae.figures(asked.runs, asked.out, asked.data):
            print(path)


def resuming_command(options: Namespace) -> str:
    """What continues an interrupted command."""
    if options.command == "train":
        return f"sparseggm train --config {options.train.out / 'config.json'} --resume"
    return f"sparseggm {options.command} as before, with --resume"


def _recipe(asked: Namespace) -> Config:
    from sparseggm import vae

    names = {field.name for field in fields(vae.Config)}
    return vae.Config(**{name: value for name, value in vars(asked).items() if name in names and value is not None})


def _train_options(command: ArgumentParser) -> None:
    from sparseggm import vae

    command.add_class_arguments(vae.Config)
    _data_option(command)
    command.add_argument("--out", type=Path, required=True, help="directory for checkpoint, history and config")
    _resume_option(command)


def _evaluate_options(command: ArgumentParser) -> None:
    command.add_argument("run", type=Path, help="directory given to --out of train")
    command.add_argument("--samples", type=int, default=500, help="importance samples an image")
    command.add_argument("--part", type=str, default="test", help="test or validation")
    _data_option(command)


def _table1_options(command: ArgumentParser) -> None:
    from sparseggm import vae

    command.add_class_arguments(vae.Config, skip={"posterior", "seed", "epochs"})
    command.add_argument("--posteriors", nargs="+", type=str, default=[*vae.POSTER], help="the first is the base line")
    command.add_argument("--seeds", nargs="+", type=int, default=[0], help="one run of each model a seed")
    command.add_argument("--epochs", type=int | None, default=None, help="default: about 6,000 steps")
    command.add_argument("--samples", type=int, default=500, help="importance samples an image")
    _data_option(command)
    command.add_argument("--out", type=Path, default=Path("runs/table1"), help="directory for runs and table")
    _resume_option(command)


def _figures_options(command: ArgumentParser) -> None:
    command.add_argument("runs", nargs="+", type=Path, help="directories of runs, or one that holds runs")
    command.add_argument("--out", type=Path | None, default=None, help="default: figures/ beside the first run")
    _data_option(command)


def _data_option(command: ArgumentParser) -> None:
    help_ = "directory of MNIST's IDX files; else $SPARSEGGM_DATA, the cache, a download, the 5,000-digit subset"
    command.add_argument("--data", type=Path | None, default=None, help=help_)


def _resume_option(command: ArgumentParser) -> None:
    command.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")


def _complain(message: str) -> int:
    print(message, file=sys.stderr)
    return MISTAKE

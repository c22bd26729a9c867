"""The command `sparseggm`: train, evaluate, interpolate, experiment, figures, results, fit-pixels.

Every option can also stand in a YAML file named by `--config`. Of an option given twice the last wins, so `--config`
comes first. A user's mistake or an error of the system, such as a full disk, gives one line on stderr and exit status
2. On Ctrl-C, SIGTERM, SIGHUP and SIGUSR1, training and fitting save, print how to continue, and exit with 128 + the
signal's number; the other commands write nothing before they end.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from sparseggm import __version__

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from sparseggm.vae import Config, PixelFit

    Recipe = TypeVar("Recipe", Config, PixelFit)

MISTAKE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    # Torch's OpenMP threads spin while they wait: with another program on the same cores, a step was seen to take
    # 450 ms in place of 6. With threads that give up after a short spin it takes 20 ms there, and 7 on an idle machine;
    # with threads that never spin, 12. torch reads the setting when it is imported; a value set by the user is kept.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a terminal that cannot show ± or Δ
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments == ["--version"]:  # without torch, which takes seconds to import
            print(f"sparseggm {__version__}")
            return 0
        # Heavy, and optional: `import sparseggm` needs neither.
        import jsonargparse  # noqa: F401

        from sparseggm import vae  # noqa: F401

        return _answer(arguments)
    except ImportError as error:
        if error.name is None or error.name.startswith("sparseggm"):
            raise  # our own mistake, not a missing package
        return _complain(f"sparseggm: needed the package {error.name}. Get it by: pip install 'sparseggm[train]'")
    finally:
        _flush(sys.stdout)


def _answer(arguments: list[str]) -> int:
    """Run a command and return its exit status; an error of the user or the system becomes one line."""
    from jsonargparse import ArgumentError

    from sparseggm import vae

    try:
        options = parser().parse_args(arguments)
    except (ArgumentError, ArgumentTypeError, OSError, OverflowError, UnicodeDecodeError, RecursionError) as error:
        return _complain(f"sparseggm: {_in_options(_one_line(error))}")
    name = " ".join(["sparseggm", *_command(options)])
    try:
        run(options)
        sys.stdout.flush()
    except vae.Interrupted as stopped:
        if vae.is_first():
            _complain(f"\n{stopped} Go on with: {resuming_command(options, arguments)}")
        return 128 + stopped.signal
    except KeyboardInterrupt:
        _complain("\nstopped.")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + 13  # SIGPIPE, which Windows does not name
    except vae.NotWrittenError as error:
        print(vae.report(error.result))
        return _complain(f"{name}: not written: {_one_line(error)}")
    except (*vae.MISTAKES, OSError) as error:
        said = _one_line(error).removeprefix(f"{name.split()[-1]}: ")  # some messages begin with the command, too
        return _complain(f"{name}: {said}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        return _complain(f"{name}: out of memory: {_one_line(error)}")
    return 0


@cache
def parser() -> ArgumentParser:
    """The parser of all commands. Options of the recipe come from `vae.Config`, their help from its docstring."""
    new = _parser_class()
    whole = new(prog="sparseggm", description=__doc__, exit_on_error=False, version=__version__)
    commands = whole.add_subcommands(dest="command")
    for name, summary, add_options in (
        ("train", "train one model", _train_options),
        ("evaluate", "ELBO and log p(x) of held-out images", _evaluate_options),
        ("interpolate", "score what lies between the posteriors of two images", _interpolate_options),
        ("figures", "plot the figures of runs", _figures_options),
        ("results", "write a page of the results of experiments", _results_options),
        ("fit-pixels", "fit a Gaussian of the images themselves, without a network", _fit_pixels_options),
    ):
        command = new(description=summary, exit_on_error=False)
        command.add_argument("--config", action="config", help="YAML file of options")
        add_options(command)
        commands.add_subcommand(name, command, help=summary)
    experiment = new(description="train and compare models", exit_on_error=False)
    commands.add_subcommand("experiment", experiment, help="train and compare models")
    _add_experiments(experiment)  # afterwards: subcommands are added from the outside to the inside
    return whole


@cache
def _parser_class() -> type[ArgumentParser]:
    """That of jsonargparse, made to write paths as text for --print_config."""
    from jsonargparse import ArgumentParser, Namespace

    class Parser(ArgumentParser):
        def dump(self, cfg: Namespace, **settings: Any) -> str:
            of_text = {name: _as_text(value) for name, value in cfg.items()}
            return str(super().dump(Namespace(of_text), **settings))  # type: ignore[no-untyped-call]

    return Parser


def _as_text(value: Any) -> Any:
    """A value in which paths are text."""
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def run(options: Namespace) -> None:
    """Run the command that these options name."""
    from sparseggm import vae

    asked = options[options.command]
    if options.command == "train":
        vae.train(_recipe(vae.Config, asked), asked.out, asked.data, resume=asked.resume)
    elif options.command == "evaluate":
        given = asked.run, asked.samples, asked.part, asked.data
        print(vae.report(vae.evaluate(*given, hide=asked.hide, refine=asked.refine)))
    elif options.command == "interpolate":
        print(vae.report_of_lines(vae.interpolate(asked.run, asked.pairs, asked.samples, asked.data)))
    elif options.command == "experiment":
        _run_experiment(asked.name, asked[asked.name])
    elif options.command == "results":
        print(vae.results(asked.folder, asked.out))
    elif options.command == "fit-pixels":
        fit = _recipe(vae.PixelFit, asked)
        vae.fit_pixels(fit, asked.out, asked.sweeps, asked.samples, asked.data, resume=asked.resume)
    else:
        for path in vae.figures(asked.runs, asked.out, asked.data):
            print(path)


def _command(options: Namespace) -> list[str]:
    """The words that name the command."""
    return [options.command, options.experiment.name] if options.command == "experiment" else [options.command]


def resuming_command(options: Namespace, arguments: Sequence[str]) -> str:
    """The command that continues an interrupted one, quoted for a shell."""
    shared = os.environ.get("LOCAL_WORLD_SIZE", "1")
    launcher = ["torchrun", "--nproc-per-node", shared, "-m"] if shared != "1" else []
    words = [each for each in arguments if each != "--resume"]
    if options.command == "train":
        words = ["train", f"--config={options.train.out / 'config.json'}"]
    return shlex.join([*launcher, "sparseggm", *words, "--resume"])


class PathType:
    """A path option; the shell expands the ~ of `--out ~/x`, but not that of `--out=~/x` or of a file of options."""

    def __repr__(self) -> str:
        return "path"  # in the help, where a function would be shown by its address

    def __call__(self, text: str | Path) -> Path:
        expanded = os.path.expanduser(text)
        if not expanded or "\0" in expanded:
            raise ArgumentTypeError(f"needed a path, got {text!r}")
        if expanded.startswith("~"):
            raise ArgumentTypeError(f"no home directory for {text}; a folder of that name is ./{text}")
        return Path(expanded)


path = PathType()


def _recipe(kind: type[Recipe], asked: Namespace) -> Recipe:
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in vars(asked).items() if name in names and value is not None})


def _train_options(command: ArgumentParser) -> None:
    from sparseggm import vae

    command.add_class_arguments(vae.Config)
    _data_option(command)
    command.add_argument("--out", type=path, required=True, help="directory for checkpoint, history and config")
    _resume_option(command)


def _evaluate_options(command: ArgumentParser) -> None:
    command.add_argument("run", type=path, help="directory given to --out of train")
    command.add_argument("--part", type=str, default="test", help="test or validation")
    _bounds_options(command)
    _data_option(command)


def _interpolate_options(command: ArgumentParser) -> None:
    command.add_argument("run", type=path, help="directory given to --out of train")
    command.add_argument("--pairs", type=int, default=500, help="pairs of test images")
    command.add_argument("--samples", type=int, default=16, help="samples of each Gaussian")
    _data_option(command)


def _add_experiments(command: ArgumentParser) -> None:
    from sparseggm import vae

    names = command.add_subcommands(dest="name")
    for experiment in vae.EXPERIMENTS.values():
        options = _parser_class()(description=experiment.title, exit_on_error=False)
        options.add_argument("--config", action="config", help="YAML file of options")
        changed = {field for changes in experiment.models.values() for field in changes}
        options.add_class_arguments(vae.Config, skip={"seed", "epochs", *changed})
        options.set_defaults(**experiment.recipe)
        known = ", ".join(experiment.models)
        options.add_argument(
            "--models", nargs="+", type=str, default=list(experiment.shown), help=f"the first is the base line; {known}"
        )
        options.add_argument("--seeds", type=int, default=1, help="how many: 0, 1, …; a run of each model for each")
        options.add_argument("--jobs", type=int, default=1, help="runs at once, each in a process of its own")
        options.add_argument(
            "--epochs", type=int | None, default=None, help=f"default: about {experiment.steps:,} steps"
        )
        _bounds_options(options)
        _data_option(options)
        options.add_argument("--out", type=path, default=Path("runs") / experiment.name, help="directory of the runs")
        _resume_option(options)
        names.add_subcommand(experiment.name, options, help=experiment.title)


def _run_experiment(name: str, asked: Namespace) -> None:
    from sparseggm import vae

    vae.experiment(
        vae.EXPERIMENTS[name],
        _recipe(vae.Config, asked),
        asked.out,
        asked.models,
        asked.seeds,
        asked.epochs,
        asked.samples,
        asked.data,
        hide=asked.hide,
        refine=asked.refine,
        jobs=asked.jobs,
        resume=asked.resume,
    )


def _figures_options(command: ArgumentParser) -> None:
    command.add_argument("runs", nargs="+", type=path, help="directories of runs, or one that holds runs")
    command.add_argument("--out", type=path, default=None, help="default: figures/ in the first of them")
    _data_option(command)


def _results_options(command: ArgumentParser) -> None:
    command.add_argument("folder", type=path, help="folder of JSON files that experiments wrote")
    command.add_argument("--out", type=path, default=None, help="the page; default: FOLDER.md")


def _fit_pixels_options(command: ArgumentParser) -> None:
    from sparseggm import vae

    command.add_class_arguments(vae.PixelFit)
    command.add_argument("--sweeps", type=int, default=15, help="sweeps of EM over the images, of coupled levels")
    command.add_argument("--samples", type=int, default=8, help="importance samples a test image, of coupled levels")
    _data_option(command)
    command.add_argument("--out", type=path, required=True, help="directory for pixels.npz and pixels.json")
    _resume_option(command)


def _bounds_options(command: ArgumentParser) -> None:
    command.add_argument("--samples", type=int, default=500, help="importance samples an image")
    command.add_argument("--refine", type=int, default=0, help="natural-gradient steps on each posterior")
    command.add_argument("--hide", type=str, default="nothing", help="upper: log p(upper half | lower half) too")


def _data_option(command: ArgumentParser) -> None:
    help_ = "directory of IDX files, of MNIST or others; else $SPARSEGGM_DATA, the cache, a download, 5,000 digits"
    command.add_argument("--data", type=path, default=None, help=help_)


def _resume_option(command: ArgumentParser) -> None:
    help_ = "continue what is in --out, with the same options"
    command.add_argument("--resume", action="store_true", help=help_)


def _complain(message: str) -> int:
    _flush(sys.stdout)  # where both streams go to one file, the complaint is its last line
    with contextlib.suppress(OSError):  # the terminal was closed
        print(message, file=sys.stderr, flush=True)
    _flush(sys.stderr)
    return MISTAKE


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else f"output: {error.strerror}"
    return " ".join(str(error).split())


def _in_options(message: str) -> str:
    """A message of the parser with options in the place of its own keys and classes."""
    message = re.sub(r"(required: )[\w-]+\.", r"\1", message)
    message = re.sub(r'expected "[\w-]+\.(\w+)" to be', r"\1 must be", message)
    message = re.sub(r"^Unexpected config: ?(.*)", r"--config needs a YAML file of options, got one of '\1'.", message)
    return re.sub(
        r"Parser key \"(\w+)\": Expected an? <class '(\w+)'>\. Got value: ", r"--\1 must be of type \2, got ", message
    )


def _flush(stream: TextIO) -> None:
    """Write out the buffer now; if it cannot be written, discard it, or it would fail again as the interpreter ends."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

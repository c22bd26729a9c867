"""Measure rows, print ratios beside their goals, write JSON and a figure."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    # As in sparseggm.cli: torch reads it when it is imported, so it is set before the rows are imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from benchmarks import figure, report
    from benchmarks.contest import Setting
    from benchmarks.rows import ROWS

    options = parser().parse_args(arguments)
    chosen = [name for name in ROWS if any(fnmatch(name, pattern) for pattern in options.only)]
    if options.list or not chosen:
        print("\n".join(ROWS))
        return
    setting = Setting(options.rounds, options.seconds, options.scale)
    about = report.machine(setting)
    print(report.heading(about), flush=True)
    results = {}
    for name in chosen:
        results[name] = ROWS[name](setting)
        print("\n" + "\n".join(report.lines(name, results[name])), flush=True)
        report.write_json(options.out, about, results)  # after each row: a long run may be stopped
    figure.plot(options.out.with_suffix(".png"), results)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(report.markdown(about, results))
    judged = [ratio.met for result in results.values() for ratio in result.ratios if ratio.met is not None]
    print(f"\n{sum(judged)} of {len(judged)} goals met. {options.out} and {options.out.with_suffix('.png')} written.")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--only", nargs="+", default=["*"], metavar="ROW", help="names, or patterns such as 'grid-*'")
    options.add_argument("--list", action="store_true", help="print the names of the rows")
    options.add_argument("--rounds", type=int, default=7, help="interleaved rounds; the median counts")
    options.add_argument("--seconds", type=float, default=0.1, help="for each contestant in each round")
    options.add_argument("--scale", type=int, default=1, help="divide the sizes, for a quick look")
    options.add_argument("--out", type=Path, default=Path("runs/benchmarks.json"), help="JSON; the figure beside it")
    options.add_argument("--markdown", type=Path, help="also write the table of docs/benchmarks.md here")
    return options


if __name__ == "__main__":
    main()

"""Measure every row, print the table of ratios, write JSON."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch

import sparseggm as sg
from benchmarks.rows import rows
from benchmarks.timing import copy_bandwidth, interleaved


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds; the median counts")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each contestant in each round")
    parser.add_argument("--scale", type=int, default=1, help="divide the sizes, for a quick look")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks.json"))
    options = parser.parse_args(arguments)

    bandwidth = copy_bandwidth(options.rounds)
    print(f"copying memory, one thread: {bandwidth / 1e9:.1f} GB/s; sparseggm uses {sg.get_num_threads()} threads\n")
    print(f"{'work':<76}{'ours':>10}  {'limit':>6}  other / ours")
    measured = []
    for row in rows(options.scale):
        seconds = interleaved({"sparseggm": row.ours, **row.peers}, options.rounds, options.seconds)
        ours = seconds.pop("sparseggm")
        limit = row.bytes_moved / bandwidth / ours if row.bytes_moved else None
        print(
            f"{row.work:<76}{ours * 1e6:>7.0f} µs  {'–' if limit is None else f'{limit:.2f}':>6}  "
            + ", ".join(f"{name} {other / ours:.1f} ×" for name, other in seconds.items())
        )
        measured.append({"work": row.work, "seconds": ours, "fraction_of_limit": limit, "peers": seconds})
    report = {
        "versions": {"sparseggm": sg.__version__, "numpy": np.__version__, "torch": torch.__version__},
        "machine": platform.machine(),
        "threads": sg.get_num_threads(),
        "copy_bytes_per_second": bandwidth,
        "rows": measured,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))
    print(f"\n'limit': time to copy the bytes that must move, over ours. Written to {options.out}.")


if __name__ == "__main__":
    main()

"""The benchmark command runs, in its tiny setting, and writes what it prints. Nothing is asserted on time."""

import json

from benchmarks import slopes
from benchmarks.__main__ import main


def test_the_benchmark_measures_every_row(tmp_path, capsys):
    out = tmp_path / "bench" / "report.json"
    main(["--rounds", "1", "--seconds", "0", "--scale", "16", "--out", str(out)])
    report = json.loads(out.read_text())
    assert len(report["rows"]) == 12
    assert all(row["seconds"] > 0 for row in report["rows"])
    printed = capsys.readouterr().out
    assert all(row["work"] in printed for row in report["rows"])


def test_the_slopes_cover_every_stated_cost(tmp_path, capsys):
    out = tmp_path / "slopes.json"
    slopes.main(["--largest", "256", "--seconds", "0", "--out", str(out)])
    rows = json.loads(out.read_text())
    assert {row["topology"] for row in rows} == set(slopes.FAMILIES)
    assert len(rows) == sum(len(verbs) for _, verbs in slopes.FAMILIES.values())
    assert capsys.readouterr().out.count("\n") == 2 + len(rows)

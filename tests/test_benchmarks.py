"""The benchmark command runs, in its tiny setting, and writes what it prints. Nothing is asserted on time."""

import json

from benchmarks.__main__ import main


def test_the_benchmark_measures_every_row(tmp_path, capsys):
    out = tmp_path / "bench" / "report.json"
    main(["--rounds", "1", "--seconds", "0", "--scale", "16", "--out", str(out)])
    report = json.loads(out.read_text())
    assert len(report["rows"]) == 12
    assert all(row["seconds"] > 0 for row in report["rows"])
    printed = capsys.readouterr().out
    assert all(row["work"] in printed for row in report["rows"])

"""The benchmark command runs every row in a tiny setting, whatever peers are there. Nothing is asserted on time."""

import json

import numpy as np
import pytest

from benchmarks import backward, orders, peers, report, scale, slopes
from benchmarks.__main__ import main
from benchmarks.contest import Contestant, DisagreementError, Peer, Ratio, Result, Setting, race
from benchmarks.rows import ROWS

TINY = Setting(rounds=1, seconds=0.0, scale=64)

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_measured(name):
    result = ROWS[name](TINY)
    assert result.seconds
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert result.ratios or result.missing
    assert all(np.isfinite(ratio.value) for ratio in result.ratios)


def test_a_missing_peer_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    result = ROWS["grid-logdet"](TINY)
    assert result.missing == {"sparsax (CHOLMOD)": peers.INSTALL["jax"]}
    assert "sparsax (CHOLMOD): pip install" in "\n".join(report.lines("grid-logdet", result))


def test_a_peer_with_another_answer_is_no_peer():
    ours = Contestant(lambda: [np.ones(3)])
    wrong = Contestant(lambda: [np.array([1.0, 1.0, 1.1])])
    with pytest.raises(DisagreementError, match="array 0 of a wrong one differs"):
        race(TINY, "ones", ours, {"a wrong one": Peer(lambda: wrong)})


def test_a_peer_whose_answer_has_another_shape_is_no_peer():
    ours, short = Contestant(lambda: [np.ones(3)]), Contestant(lambda: [np.ones(2)])
    with pytest.raises(DisagreementError, match="shapes"):
        race(TINY, "ones", ours, {"a short one": Peer(lambda: short)})


@pytest.mark.parametrize(
    ("ratio", "met"),
    [
        (Ratio("", 0.9, 0.8), True),
        (Ratio("", 0.7, 0.8), False),
        (Ratio("", 1.04, 1.05, "≤"), True),
        (Ratio("", 1.06, 1.05, "≤"), False),
        (Ratio("", 2.0), None),
        (Ratio("", float("nan"), 1.0), False),
    ],
)
def test_a_goal_is_met_or_not(ratio, met):
    assert ratio.met is met


def test_the_command_prints_what_it_writes(tmp_path, capsys):
    out, table = tmp_path / "bench" / "report.json", tmp_path / "table.md"
    tiny = ["--rounds", "1", "--seconds", "0", "--scale", "64", "--out", str(out), "--markdown", str(table)]
    main(["--only", "solve_t-chain-*", "dtype-chain", *tiny])
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == ["solve_t-chain-float32", "solve_t-chain-float64", "dtype-chain"]
    printed, written = capsys.readouterr().out, table.read_text()
    assert all(row["work"] in printed for row in rows.values())
    assert all(f"`{name}`" in written for name in rows)
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_of_many_ratios_those_that_miss_are_told():
    verbs = [Ratio(f"verb {index}", 0.9 + 0.01 * index, 1.05, "≤") for index in range(18)]
    assert [ratio.of for ratio in Result("", {}, verbs).telling] == ["verb 16", "verb 17"]


def test_of_many_ratios_that_meet_their_goals_the_worst_is_told():
    verbs = [Ratio(f"verb {index}", 0.8 + 0.01 * index, 1.05, "≤") for index in range(18)]
    assert [ratio.of for ratio in Result("", {}, verbs).telling] == ["verb 17"]


def test_of_few_ratios_all_are_told():
    ratios = [Ratio("met", 1.0, 1.0), Ratio("shown", 1.0)]
    assert Result("", {}, ratios).telling == ratios


def test_the_slopes_cover_every_stated_cost(tmp_path, capsys):
    out = tmp_path / "slopes.json"
    slopes.main(["--largest", "256", "--seconds", "0", "--out", str(out)])
    rows = json.loads(out.read_text())
    assert {row["topology"] for row in rows} == set(slopes.FAMILIES)
    assert len(rows) == sum(len(verbs) for _, verbs in slopes.FAMILIES.values())
    assert capsys.readouterr().out.count("\n") == 2 + len(rows)


def test_orders_stand_beside_those_of_metis_where_it_is_installed(capsys):
    orders.main(["--scale", "8"])
    missing, _, table = capsys.readouterr().out.partition("| topology")
    assert missing in ("", f"pymetis is not installed; {peers.INSTALL['pymetis']}\n")
    rows = table.splitlines()[2:]
    assert len(rows) == len(orders.TOPOLOGIES)
    assert all(("–" in row) == bool(missing) for row in rows)


def test_the_order_of_a_peer_that_is_missing_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    orders.main(["--scale", "8"])
    assert capsys.readouterr().out.count("| – |") == 2 * len(orders.TOPOLOGIES)


def test_the_cost_of_gradients_covers_both_dtypes(capsys):
    backward.main(["--scale", "4", "--calls", "1"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(backward.TOPOLOGIES)


def test_the_estimates_of_scale_cover_all_sizes_and_say_where_a_machine_ends(capsys) -> None:
    scale.main(["--scale", "256"])
    table = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| chain |") for line in table) == 3
    assert "beyond 2³¹ entries" in next(line for line in table if "extended grid | marginal_variances" in line)
    assert table[-1].startswith("| 10⁹ |")

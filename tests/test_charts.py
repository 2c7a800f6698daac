"""Charts of the pages say what their tables say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))
charts = pytest.importorskip("charts")

PAGE = """
| set | method | RMSE | note |
|---|---|---|---|
| a | ours | 0.10 (0.02) | **1,646** |
| a | theirs | .25 | 8 of 10 |
| b | ours | - | |
| b | theirs | -0.5 (.1 to .9) | 4.3e-05 of 28800 |
"""


@pytest.mark.parametrize(
    ("cell", "figure"),
    [
        ("0.0519 (0.0016)", (0.0519, 0.0016)),
        ("1,646", (1646.0, 0.0)),
        ("**7.279**", (7.279, 0.0)),
        (".890 (.881 to .900)", (0.89, 0.0)),
        ("8 of 10", (8.0, 0.0)),
        ("-0.001 (0.002)", (-0.001, 0.002)),
        ("4.3e-05 of 28800", (4.3e-05, 0.0)),
        ("-", None),
        ("", None),
        ("no result within 8 GiB", None),
    ],
)
def test_figures_of_cells(cell, figure):
    assert charts.number(cell) == figure


def test_points_are_those_of_the_table():
    table = charts.next_table(PAGE, 0)
    assert table.columns == ["set", "method", "RMSE", "note"]
    series = charts._series(table.rows, ["RMSE"], {"rows": "set", "colors": "method"})
    assert series == {"ours": [("a", 0.1, 0.02)], "theirs": [("a", 0.25, 0.0), ("b", -0.5, 0.0)]}


def test_a_chart_is_drawn_and_a_wrong_column_is_named(tmp_path):
    table = charts.next_table(PAGE, 0)
    charts.draw(table, ["RMSE"], {"rows": "set", "colors": "method"}, tmp_path / "chart.svg")
    assert "<svg" in (tmp_path / "chart.svg").read_text()
    with pytest.raises(ValueError, match=r"no columns \['AUPR'\]"):
        charts.draw(table, ["AUPR"], {"rows": "set"}, tmp_path / "chart.svg")

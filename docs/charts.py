"""A chart above a table, drawn from the table itself while the pages are built, so that the two cannot differ.

In a page, before a table::

    ```{chart} RMSE
    :rows: set
    :colors: method
    ```

draws a point for each line of the table that follows: the column named on the first line across, rows down, one colour
for each method. Several columns (``ours; FlashS``) are drawn in a colour each. With ``:x: spots`` lines join the values
over a numeric column. ``:log:`` has logarithmic scales, ``:label:`` names the axis of values, ``:only: column = value``
keeps some lines. Figures in brackets, standard errors, are drawn as bars.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

# Okabe and Ito's colours, told apart by all kinds of sight, each with a mark of its own for a print without colours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?")
_ERROR = re.compile(r"\(\s*(\.?\d[\d.]*(?:e[-+]?\d+)?)\s*\)")


@dataclass
class Table:
    columns: list[str]
    rows: list[dict[str, str]]


def next_table(text: str, line: int) -> Table:
    """Read the first table of a Markdown text after a line."""
    lines = text.splitlines()
    begin = next(index for index in range(line, len(lines)) if lines[index].startswith("|"))
    end = begin
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in lines[begin:end]]
    columns = cells[0]
    return Table(columns, [dict(zip(columns, row, strict=True)) for row in cells[2:]])


def number(cell: str) -> tuple[float, float] | None:
    """Read value and standard error of a cell (no error is 0), or None where it has no figure."""
    found = _NUMBER.match(cell.strip("* "))
    if not found:
        return None
    error = _ERROR.search(cell)
    return float(found.group().replace(",", "")), float(error.group(1)) if error else 0.0


def draw(table: Table, values: list[str], options: dict[str, Any], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    missing = [name for name in [*values, *_named(options)] if name not in table.columns]
    if missing:
        raise ValueError(f"the table has no columns {missing}; columns: {table.columns}")
    rows = table.rows
    if "only" in options:
        column, kept = (part.strip() for part in options["only"].split("=", 1))
        rows = [row for row in rows if row[column] == kept]
    series = _series(rows, values, options)
    with rc_context({"font.size": 9, "svg.hashsalt": path.stem, "axes.spines.top": False, "axes.spines.right": False}):
        places = list(dict.fromkeys(point[0] for points in series.values() for point in points))
        labels = [textwrap.fill(str(place), 34) for place in places]
        row = max(0.2 + 0.05 * min(len(series), 4), 0.14 * max(label.count("\n") + 1 for label in labels) + 0.05)
        height = 2.6 if "x" in options else 0.7 + row * len(places)
        legend = 0.22 * -(-len(series) // 3) if len(series) > 1 else 0.0
        figure = Figure(figsize=(5.4, height + legend), layout="constrained", facecolor="white")
        axis = figure.subplots()
        # Points of one row stand a little apart, so that equal ones are all seen.
        aside = np.linspace(-0.28, 0.28, len(series)) if len(series) > 1 else [0.0]
        for (name, points), color, mark, shift in zip(series.items(), COLORS, MARKS, aside, strict=False):
            _draw_series(axis, name, points, places, options, color, mark, shift)
        label = options.get("label") or values[0]
        if "x" in options:
            axis.set(xlabel=options["x"], ylabel=label)
            axis.grid(alpha=0.3)
        else:
            axis.set_yticks(range(len(places)), labels, linespacing=0.9)
            axis.set_ylim(len(places) - 0.5, -0.5)
            axis.set_xlabel(label, loc="right")
            axis.grid(axis="x", alpha=0.3)
            for edge in range(1, len(places)):
                axis.axhline(edge - 0.5, color="0.9", linewidth=0.6)
        if "log" in options:
            axis.set_xscale("log")
            if "x" in options:
                axis.set_yscale("log")
        if len(series) > 1:
            title = options.get("colors") if "x" in options else None
            figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8, title=title, title_fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _named(options: dict[str, Any]) -> list[str]:
    return [name for key in ("rows", "colors", "x") for name in _names(options.get(key, ""))]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(";") if name.strip()]


def _series(
    rows: list[dict[str, str]], values: list[str], options: dict[str, Any]
) -> dict[str, list[tuple[Any, float, float]]]:
    """Points (place, value, error) of each colour, in the order of the table."""
    series: dict[str, list[tuple[Any, float, float]]] = {}
    for row in rows:
        for column in values:
            figure = number(row[column])
            if figure is None:
                continue
            if "x" in options:
                found = number(row[options["x"]])
                if found is None:
                    continue
                place: Any = found[0]
            else:
                place = ", ".join(row[name] for name in _names(options["rows"]))
            if "colors" in options:
                name = ", ".join(row[column_] for column_ in _names(options["colors"]))
                name = name if len(values) == 1 else f"{name}, {column}"
            else:
                name = column
            series.setdefault(_plain(name), []).append((_plain(place), *figure))
    if len(series) > len(COLORS):
        raise ValueError(f"a chart has at most {len(COLORS)} colours, found {list(series)}")
    return series


def _plain(text: Any) -> Any:
    return text.replace("`", "").replace("**", "") if isinstance(text, str) else text


def _draw_series(
    axis: Any, name: str, points: list, places: list, options: dict, color: str, mark: str, shift: float
) -> None:
    where = [point[0] for point in points]
    values = [point[1] for point in points]
    errors = [point[2] for point in points]
    style = {"color": color, "marker": mark, "markersize": 5, "label": name, "elinewidth": 1}
    bars = errors if any(errors) else None
    if "x" in options:
        axis.errorbar(where, values, yerr=bars, linewidth=1.2, **style)
    else:
        axis.errorbar(values, [places.index(place) + shift for place in where], xerr=bars, linestyle="none", **style)


class Chart(SphinxDirective):
    """The directive ``chart``."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = {
        "rows": directives.unchanged,
        "colors": directives.unchanged,
        "x": directives.unchanged,
        "label": directives.unchanged,
        "only": directives.unchanged,
        "log": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        if ("rows" in self.options) == ("x" in self.options):
            raise self.error("a chart has rows or x")
        source = Path(self.env.doc2path(self.env.docname))
        values = _names(self.arguments[0])
        text = source.read_text(encoding="utf-8")
        _, line = self.get_source_info()
        name = f"{self.env.docname.replace('/', '-')}-{line}.svg"
        path = Path(self.env.app.outdir) / "_static" / "charts" / name
        try:
            draw(next_table(text, line), values, self.options, path)
        except (ValueError, StopIteration) as fault:
            raise self.error(f"{source.name}, line {line}: {fault or 'no table follows'}") from fault
        depth = self.env.docname.count("/")
        label = self.options.get("label") or " and ".join(values)
        figure = nodes.raw(
            "",
            f'<img class="chart" loading="lazy" src="{"../" * depth}_static/charts/{name}" '
            f'alt="Chart of the table below: {label}">',
            format="html",
        )
        return [figure]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("chart", Chart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

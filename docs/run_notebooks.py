"""Run the notebooks and keep their outputs where the pages take them from.

``python docs/run_notebooks.py [NAME ...]`` writes ``docs/notebooks/NAME.ipynb``, all by default, two at a time. It
fails where a cell fails, where one warns, and where one that draws shows no picture.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "notebooks"
PAGES = ROOT / "docs" / "notebooks"

SECONDS_OF_A_CELL = 1800  # after which it is taken to have stopped; the longest take a minute
SECONDS_OF_A_START = 300
# Bars are for a person who waits. What other packages say of themselves is left out: of their imports, their updates
# and their next defaults; and of programs that another notebook is just writing into the store that they share.
QUIET = (
    "ignore::SyntaxWarning:docrep.decorators",
    "ignore::FutureWarning:muon._core.preproc",
    "ignore::FutureWarning:mudata._core.mudata",
    "ignore:Writing zarr v2 data will no longer be the default:UserWarning",
    "ignore:Error reading persistent compilation cache entry:UserWarning",
    "ignore:Error writing persistent compilation cache entry:UserWarning",
)
ENVIRONMENT = {"DIFFBIO_SC_PROGRESS": "0", "PYTHONWARNINGS": ",".join(QUIET)}
# Long ones first, so that none is left alone at the end.
LONG = ("composition", "contextual", "spatial_genes", "multiomics_vae")


def run(source: Path) -> list[str]:
    """Run one notebook, store it with its outputs, and return what is wrong with it."""
    os.environ.update(ENVIRONMENT)
    os.environ.pop("MPLBACKEND", None)  # figures belong on the page
    begin = time.monotonic()
    notebook = nbformat.read(source, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS_OF_A_CELL,
        startup_timeout=SECONDS_OF_A_START,
        resources={"metadata": {"path": str(source.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return [f"{source.name}: {error}"]
    faults = [
        f"{source.name}: a cell warns:\n{output.text}"
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr" and "Warning" in output.text
    ]
    faults += [
        f"{source.name}: a cell draws, and has no picture:\n{cell.source}"
        for cell in notebook.cells
        if cell.cell_type == "code"
        and "dbio.pl." in cell.source
        and not any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]
    if not faults:
        nbformat.write(notebook, PAGES / source.name)
    print(f"{source.stem}: {time.monotonic() - begin:.0f} s", flush=True)
    return faults


def main(names: Sequence[str]) -> int:
    if len(names) == 1:
        faults = run(SOURCES / f"{names[0]}.ipynb")
        for fault in faults:
            print(fault, file=sys.stderr)
        return int(bool(faults))
    names = names or sorted(source.stem for source in SOURCES.glob("*.ipynb"))
    with ThreadPoolExecutor(2) as two:
        commands = [[sys.executable, __file__, name] for name in sorted(names, key=lambda name: name not in LONG)]
        return max(two.map(subprocess.call, commands))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The command line: ``diffbio-sc demo``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    from diffbio_sc import __version__

    parser = argparse.ArgumentParser(prog="diffbio-sc", description="Differentiable operators for single-cell data.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="deconvolve a tissue of real blood cells with known composition")
    demo.add_argument("--output", default=".", help="folder for the figure and the h5ad file (default: here)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the mixture (default: 0)")
    options = parser.parse_args(arguments)

    from diffbio_sc._demo import run

    run(options.output, options.seed)
    return 0

"""The command ``python -m diffbio_sc.benchmarks``: run the suites, store the run, tell what got worse."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from diffbio_sc.benchmarks.guard import align, compare
from diffbio_sc.benchmarks.records import Run
from diffbio_sc.benchmarks.store import Store, StoreError, read_run
from diffbio_sc.benchmarks.suite import Suite, SuiteReport, as_one_run, run_suite

#: Suites by name: module of this package and the attribute that is the suite or makes it.
SUITES = {
    "deconvolution": ("deconvolution_suite", "suite"),
    "spatial_genes": ("spatial_genes_suite", "SUITE"),
    "multiomics_vae": ("multiomics_vae_suite", "SUITE"),
    "peaks": ("peaks_suite", "SUITE"),
    "chromatin_states": ("chromatin_states_suite", "SUITE"),
    "contacts": ("contacts_suite", "SUITE"),
    "contextual_epigenomics": ("contextual_suite", "suite"),
}
PASSED, WORSE, UNUSABLE = 0, 1, 2


def find_suite(name: str) -> Suite:
    """Return the suite of a system."""
    module, attribute = SUITES[name]
    found: Suite | Callable[[], Suite] = getattr(import_module(f"diffbio_sc.benchmarks.{module}"), attribute)
    return found if isinstance(found, Suite) else found()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 nothing got worse, 1 something did, 2 it could not be told."""
    options = _parser().parse_args(arguments)
    names = list(dict.fromkeys(options.suite or SUITES))
    try:
        store = Store(options.store)
        baseline = _read_baseline(options, store)
    except (StoreError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    reports = [_run(find_suite(name), options) for name in names]
    run = as_one_run(reports)
    path = store.save(run)
    failures = {name: message for report in reports for name, message in report.failures.items()}
    status = _judge(run, baseline, names, options)
    for name, message in failures.items():
        print(f"FAILED {name}: {message}")
    print(f"Stored: {path}")
    if options.update:
        if failures:
            print("The baseline stays as it was: some cases failed.")
        else:
            status = _update(run, baseline, names, options, store)
    return max(status, WORSE) if failures else status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffbio_sc.benchmarks",
        description="Run the benchmark suites, store the run, and tell what got worse.",
        epilog="Exit status: 0 nothing got worse, 1 something did or a case failed, 2 a store or baseline is unusable.",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="quick", action="store_true", default=True, help="small bundled cases (default)")
    size.add_argument("--full", dest="quick", action="store_false", help="full cases; real data by DIFFBIO_SC_DATA")
    parser.add_argument(
        "--suite", action="append", choices=sorted(SUITES), help="suite to run (default: all); repeatable"
    )
    parser.add_argument("--seeds", type=_seeds, help="seeds in place of each case's own, such as 10,11,12")
    parser.add_argument(
        "--store", default="benchmark_runs", help="folder to store the run in (default: benchmark_runs)"
    )
    parser.add_argument("--baseline", help="store, or file of a run, to compare with (default: baseline of --store)")
    parser.add_argument("--update", action="store_true", help="make this run, of the suites run, the baseline")
    return parser


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"seeds must be whole numbers with commas between, found {text!r}") from None
    if min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise argparse.ArgumentTypeError(f"seeds must be different whole numbers of at least 0, found {text!r}")
    return seeds


def _read_baseline(options: argparse.Namespace, store: Store) -> Run | None:
    """Return the baseline; None where there is none yet and it was not asked for."""
    if options.baseline is None:
        return store.get_baseline()
    path = Path(options.baseline)
    if path.is_file():
        return read_run(path)
    found = Store(path).get_baseline()
    if found is None and not options.update:
        raise FileNotFoundError(f"{str(path)!r} holds no baseline; make one with --update.")
    return found


def _run(suite: Suite, options: argparse.Namespace) -> SuiteReport:
    began, cpu = time.perf_counter(), time.process_time()
    report = run_suite(suite, quick=options.quick, seeds=options.seeds, strict=False)
    told = f"{suite.name}: {len(report.points)} points, {time.process_time() - cpu:.0f} CPU s"
    print(f"{told}, {time.perf_counter() - began:.0f} s", flush=True)
    for name, reason in report.skipped.items():
        print(f"  left out {name}: {reason}")
    return report


def _judge(run: Run, baseline: Run | None, names: list[str], options: argparse.Namespace) -> int:
    """Print the table, and the verdicts if there is something to compare with."""
    if baseline is not None and baseline.metadata.get("size", run.metadata["size"]) != run.metadata["size"]:
        print(f"error: the baseline is {baseline.metadata['size']}, this run {run.metadata['size']}.", file=sys.stderr)
        baseline = None
        status = UNUSABLE
    else:
        status = PASSED
    known = set() if baseline is None else {point.scenario for point in baseline.points}
    if baseline is None or not known & set(names):
        print("\n" + _plain_table(run))
        print("\nThere is no baseline to compare with; make this run one with --update.")
        return status
    result = compare(run, baseline, scenarios=known & set(names))
    print("\n" + result.table() + "\n\n" + result.summary())
    for name in names:
        if name not in known:
            print(f"Not in the baseline: suite {name}.")
    return result.exit_code


def _plain_table(run: Run) -> str:
    rows: list[tuple[str, ...]] = [("point", "metric", "median", "least", "most")]
    for point in run.points:
        for name, metric in point.metrics.items():
            ends = (metric.lower, metric.upper)
            cells = tuple("" if value is None or math.isnan(value) else f"{value:.4g}" for value in ends)
            rows.append((point.name, name, f"{metric.value:.4g}", *cells))
    return align(rows, right=(2, 3, 4))


def _update(run: Run, baseline: Run | None, names: list[str], options: argparse.Namespace, store: Store) -> int:
    """Store the run as baseline; suites that were not run keep what is stored of them."""
    target = store if options.baseline is None else Store(options.baseline)
    merged = run if baseline is None else _merged(run, baseline, names)
    try:
        target.set_baseline(merged)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    print(f"Baseline: {target.baseline_path}")
    return PASSED


def _merged(run: Run, baseline: Run, names: list[str]) -> Run:
    kept = tuple(point for point in baseline.points if point.scenario not in names)
    if not kept:
        return run
    wanted = {point.name for point in kept}
    metadata: dict[str, Any] = {**run.metadata}
    for key in ("seeds", "suites", "skipped"):
        stored = baseline.metadata.get(key, {})
        old = {
            name: value for name, value in stored.items() if name in wanted or (key == "suites" and name not in names)
        }
        metadata[key] = {**old, **run.metadata[key]}
    return dataclasses.replace(
        run, points=kept + run.points, metadata=metadata, metric_defs={**baseline.metric_defs, **run.metric_defs}
    )

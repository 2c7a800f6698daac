"""Rows of ``scale.py`` as a benchmark run that can be stored, and the check against a stored one."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from diffbio_sc.benchmarks import GuardResult, Metric, MetricDef, Point, Run, compare, read_run

RISE = 0.2  # share by which CPU or memory may rise
FEWEST_SECONDS, FEWEST_MEGABYTES = 1.0, 50.0  # below, a rise is noise: smaller figures count as these
CPU, MEMORY = "CPU, in yardsticks", "memory"
DEFINITIONS = {
    CPU: MetricDef(name=CPU, direction="lower", description="CPU seconds of the row over those of the yardstick"),
    MEMORY: MetricDef(name=MEMORY, unit="MB", direction="lower", description="largest memory of the row"),
}
_OTHER = ("before", "of the result", "of the tables", "grown")  # megabytes that are no largest memory
_TEXT = ("table", "function", "source", "setting", "peaks", "workers", "rows", "genes", "block", "million fragments")


def yardstick() -> float:
    """CPU seconds of a fixed piece of work like that of the rows: what makes two machines comparable."""
    import scipy.fft
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    dense = rng.normal(size=(1500, 1500)).astype(np.float32)
    sparse = sp.random_array((20_000, 2000), density=0.1, rng=rng, format="csr", dtype=np.float32)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        for _ in range(4):
            scipy.fft.rfftn(dense.reshape(10, 150, 1500), axes=(1, 2))
            dense @ dense
            np.log1p(np.abs(dense)).sum()
            sparse.tocsc()
            sum(k % 7 for k in range(300_000))
        seconds.append(time.process_time() - started)
    return float(np.median(seconds))


def machine() -> dict[str, Any]:
    """What ran the rows."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) / 1e6 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count() or 0,
        "GB": round(memory[0]) if memory else 0,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def commit() -> str | None:
    """Commit of the sources, with a plus sign if they have changed since."""
    folder = Path(__file__).parent
    found = [
        subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=False)
        for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
    ]
    return None if found[0].returncode else found[0].stdout.strip() + "+" * bool(found[1].stdout.strip())


def as_run(rows: list[dict[str, Any]], seconds: float) -> Run:
    """Rows as a run; ``seconds`` are those of the yardstick."""
    points = []
    for row in rows:
        tags = {key: str(row[key]) for key in _TEXT if key in row}
        metrics = {}
        for suffix in (" second", " first", ""):
            used = [row[key] for key in (f"CPU s{suffix}", f"workers CPU s{suffix}") if key in row]
            if used:
                metrics[CPU] = Metric(value=max(sum(used), FEWEST_SECONDS) / seconds)
                break
        megabytes = [value for key, value in row.items() if "MB" in key and not any(word in key for word in _OTHER)]
        if megabytes:
            metrics[MEMORY] = Metric(value=float(max(*megabytes, FEWEST_MEGABYTES)))
        points.append(Point(name="scale, " + ", ".join(tags.values()), scenario="scale", tags=tags, metrics=metrics))
    environment = {**machine(), "yardstick, CPU s": seconds}
    return Run(points=tuple(points), commit=commit(), environment=environment, metric_defs=DEFINITIONS)


def judge(run: Run, baseline: Path) -> GuardResult:
    """Compare with a stored run: what both have, within a rise of a fifth."""
    return compare(run, read_run(baseline), threshold=RISE, absolute=0.0)

"""The same functions on the CPU and on JAX's default device: how far results differ, and what a call takes.

``python benchmarks/devices.py`` runs each function twice in a process that sees the CPU alone, and twice in one that
sees JAX's default device, a GPU where its build is installed. It prints seconds of both calls (wall, since a GPU
spends no CPU; the first compiles) and the largest and mean differences of each result, beside the result's standard
deviation. ``--precision default`` shows what the device's own precision of products would give.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd


def _tissue():
    import diffbio_sc as dbio

    return dbio.datasets.pbmc_tissue()


def _many_spots():
    import anndata as ad

    spots, reference = _tissue()
    return ad.concat([spots] * (20_000 // spots.n_obs), index_unique="-"), reference


def _deconvolve(data) -> dict[str, np.ndarray]:
    import diffbio_sc as dbio

    spots, reference = data
    dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    return {"proportions": spots.obsm["deconvolution"], "deviations": spots.obsm["deconvolution_std"]}


def _genes():
    import diffbio_sc as dbio

    return dbio.datasets.simulate_spatial_genes()


def _test(adata) -> dict[str, np.ndarray]:
    import diffbio_sc as dbio

    dbio.tl.spatial_genes(adata)
    return {"p-values": adata.var["spatial_pvalue"]}


def _cells():
    import diffbio_sc as dbio

    return dbio.datasets.simulate_multiomics(n_cells=2000, n_genes=2000, n_peaks=4000)


def _embed(epochs: int):
    def embed(mdata) -> dict[str, np.ndarray]:
        import diffbio_sc as dbio

        dbio.tl.multiomics_vae(mdata, max_epochs=epochs)
        history = mdata.uns["multiomics_vae"]["report"]["history"]
        losses = {"held-out loss": history["validation_loss"]} if "validation_loss" in history else {}
        return {"embedding": mdata.obsm["X_multiomics_vae"], **losses}

    return embed


def _regions():
    import diffbio_sc as dbio

    adata = dbio.datasets.simulate_regulatory_regions(n_regions=2000, width=80, rng=1)
    dbio.pp.sequences(adata)
    return adata


def _contextual(adata) -> dict[str, np.ndarray]:
    import diffbio_sc as dbio

    dbio.tl.contextual(adata)
    return {"logits": adata.layers["contextual_logit"]}


CALLS = {
    "deconvolve, 400 spots": (_tissue, _deconvolve),
    "deconvolve, 20,000 spots": (_many_spots, _deconvolve),
    "spatial_genes": (_genes, _test),
    "multiomics_vae, start": (_cells, _embed(0)),
    "multiomics_vae, 30 epochs": (_cells, _embed(30)),
    "contextual": (_regions, _contextual),
}


def measure(path: Path) -> None:
    """Run all calls in this process and store results and seconds."""
    import jax

    warnings.simplefilter("ignore")
    found: dict[str, np.ndarray] = {"device": np.array(jax.devices()[0].device_kind)}
    for name, (make, call) in CALLS.items():
        for turn in (1, 2):
            data = make()
            started = time.perf_counter()
            results = call(data)
            found[f"{name}|seconds {turn}"] = np.array(time.perf_counter() - started)
        found |= {f"{name}|{key}": np.asarray(value, np.float64) for key, value in results.items()}
        np.savez(path, **found)


def run(path: Path, platform: str | None, precision: str) -> dict[str, np.ndarray]:
    """Run all calls in a process of its own."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "DIFFBIO_SC_PROGRESS": "0"}
    if platform is not None:
        environment["JAX_PLATFORMS"] = platform
    if precision == "default":
        environment["JAX_DEFAULT_MATMUL_PRECISION"] = "default"
    subprocess.run([sys.executable, __file__, "--measure", str(path)], env=environment, check=True)
    return dict(np.load(path))


def compare(cpu: dict[str, np.ndarray], device: dict[str, np.ndarray]) -> pd.DataFrame:
    """Differences of all results, and seconds of both calls."""
    rows = []
    for key in cpu:
        name, _, result = key.partition("|")
        if not result or result.startswith("seconds") or key not in device:
            continue
        row: dict[str, object] = {"call": name, "result": result}
        if device[key].shape == cpu[key].shape:
            difference = np.abs(device[key] - cpu[key])
            figures = {"largest": np.nanmax(difference), "mean": np.nanmean(difference), "spread": np.nanstd(cpu[key])}
            row |= {name: f"{value:.2g}" for name, value in figures.items()}
        else:
            row["largest"] = "another length"
        for where, one in (("CPU", cpu), ("device", device)):
            for turn, word in ((1, "first"), (2, "second")):
                row[f"{where}, {word} call"] = f"{float(one[f'{name}|seconds {turn}']):.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["full", "default"], default="full")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        cpu = run(Path(folder) / "cpu.npz", "cpu", "full")
        device = run(Path(folder) / "device.npz", None, arguments.precision)
    print(f"{cpu['device']} against {device['device']}, products in {arguments.precision} precision")
    print(compare(cpu, device).to_string(index=False))


if __name__ == "__main__":
    main()

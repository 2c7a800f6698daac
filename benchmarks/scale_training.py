"""Training beyond one device and beyond memory: what it costs, and whether it learns the same.

python benchmarks/scale_training.py [devices] [disk] [quality] [accelerator] [--cells 50000,200000] [--epochs 2]

``devices``: peak of resident memory and bytes of samples on 1, 2 and 4 devices of the host, and how far the loss is
from that of one. ``disk``: ``tl.multiomics_vae`` on a zarr store, lazily and in memory: peak of resident memory, CPU
seconds of a further epoch. ``quality``: loss and neighbours after equal epochs, from disk, in memory and with another
seed. ``accelerator``: the same model on the default device and on the host, in memory and from parts. Every row is a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import numpy as np
import scipy.sparse as sp

FEATURES, CHUNK, TYPES, DEPTH = 2000, 1000, 12, 1200


def counts(start: int, rows: int) -> sp.csr_matrix:
    """Cells of some types with programmes of genes in different strength, about 300 genes detected in each."""
    genes = np.random.default_rng(3)
    profiles = genes.gamma(0.15, 1.0, (TYPES, FEATURES)) + 1e-4
    programmes = genes.normal(0, 0.5, (4, FEATURES))
    rng = np.random.default_rng([7, start])
    rates = profiles[rng.integers(0, TYPES, rows)] * np.exp(rng.normal(size=(rows, 4)) @ programmes)
    rates *= DEPTH * rng.gamma(6, 1 / 6, (rows, 1)) / rates.sum(1, keepdims=True)
    return sp.csr_matrix(rng.poisson(rates).astype(np.float32))


def make_store(path: Path, cells: int) -> None:
    """Write cells chunk by chunk, as anndata stores them."""
    import anndata as ad
    import pandas as pd
    import zarr
    from anndata.io import write_elem

    group = zarr.open_group(path, mode="w")
    write_elem(group, "X", counts(0, CHUNK))
    disk = ad.io.sparse_dataset(group["X"])
    for start in range(CHUNK, cells, CHUNK):
        disk.append(counts(start, min(CHUNK, cells - start)))
    write_elem(group, "obs", pd.DataFrame(index=[f"cell_{i}" for i in range(cells)]))
    write_elem(group, "var", pd.DataFrame(index=[f"gene_{i}" for i in range(FEATURES)]))


def opened(path: Path, *, lazily: bool):
    """The stored cells as a MuData of one modality."""
    import anndata as ad
    import mudata
    import zarr

    group = zarr.open_group(path, mode="r")
    if lazily:
        matrix = ad.experimental.read_elem_lazy(group["X"], chunks=(CHUNK, FEATURES))
    else:
        matrix = ad.io.read_elem(group["X"])
    cells = ad.AnnData(matrix, obs=ad.io.read_elem(group["obs"]), var=ad.io.read_elem(group["var"]))
    return mudata.MuData({"rna": cells})


def train_stored(path: str, lazily: bool, epochs: int, seed: int, result: str) -> dict:
    """Figures of one fit on a store."""
    import diffbio_sc as dbio
    from diffbio_sc.training import loop

    seconds, go_through = [], loop._Run.train

    def timed(*arguments):
        before = time.process_time()
        result = go_through(*arguments)
        seconds.append(time.process_time() - before)
        return result

    loop._Run.train = timed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = opened(Path(path), lazily=lazily)
        before = time.process_time()
        dbio.tl.multiomics_vae(mdata, likelihoods="negative_binomial", max_epochs=epochs, rng=seed)
    figures = {"cpu": time.process_time() - before, "epochs": seconds, "peak": peak()}
    history = mdata.uns["multiomics_vae"]["report"]["history"]
    figures["validation_loss"] = list(map(float, history["validation_loss"])) if history else []
    if result:
        np.save(result, mdata.obsm["X_multiomics_vae"])
    return figures


def peak() -> float:
    """Peak of resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def train_on_devices(cells: int, epochs: int) -> dict:
    """Figures of a fit on all devices."""
    import jax
    from flax import nnx

    from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
    from diffbio_sc.training import batches

    placed: list[int] = []
    put = batches.place_samples

    def watched(*arguments, **options):
        result = put(*arguments, **options)
        shards = [shard for array in jax.tree.leaves(result[0]) for shard in array.addressable_shards]
        placed.append(sum(shard.data.nbytes for shard in shards))
        return result

    batches.place_samples = watched
    matrix = sp.csr_array(sp.vstack([counts(start, CHUNK) for start in range(0, cells, CHUNK)], format="csr"))
    config = MultiOmicsVAEConfig(modality_dims=(FEATURES,), latent_dim=20, likelihoods=("negative_binomial",))
    vae = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
    before = time.process_time()
    report = vae.fit_matrices([matrix], max_epochs=epochs, patience=epochs + 1)
    loss = [float(value) for value in report.history["validation_loss"]]
    return {
        "devices": jax.device_count(),
        "bytes": placed[0],
        "cpu": time.process_time() - before,
        "peak": peak(),
        "loss": loss,
    }


def train_accelerated(cells: int, epochs: int, parts: bool) -> dict:
    """Figures of a fit on the default device, in memory or from parts on disk."""
    import jax
    from flax import nnx

    from diffbio_sc.blocks.row_store import RowStore
    from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig

    blocks = (sp.csr_array(counts(start, CHUNK)) for start in range(0, cells, CHUNK))
    matrix = RowStore.of(blocks, FEATURES) if parts else sp.csr_array(sp.vstack(list(blocks), format="csr"))
    config = MultiOmicsVAEConfig(modality_dims=(FEATURES,), latent_dim=20, likelihoods=("negative_binomial",))
    figures = {"device": jax.devices()[0].device_kind}
    for name, number in (("first", 1), ("again", 1), ("more", epochs)):
        vae = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
        started = time.perf_counter()
        report = vae.fit_matrices([matrix], max_epochs=number, patience=epochs + 1)
        figures[name] = time.perf_counter() - started
    figures["epoch"] = (figures["more"] - figures["again"]) / (epochs - 1)
    figures["loss"] = [float(value) for value in report.history["validation_loss"]]
    return figures


def row(function: str, *arguments, **environment: str) -> dict:
    """Result of a function in a process of its own."""
    here = os.path.dirname(os.path.abspath(__file__))
    code = (
        f"import sys, json; sys.path.insert(0, {here!r}); import scale_training as benchmark; "
        f"print(json.dumps(benchmark.{function}(*{arguments!r})))"
    )
    # Without a store of compiled programs, so that what is compiled costs every row the same.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **environment}, check=False
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    return json.loads(run.stdout.splitlines()[-1])


def devices(options, _: Path) -> None:
    """Several devices of one host."""
    print(f"\n## devices: {options.sizes[0]:,} cells, {FEATURES:,} features\n")
    print("| devices | MB of samples on all | peak MB | CPU s | largest relative difference of the loss |")
    print("|---|---|---|---|---|")
    first = None
    for count in (1, 2, 4):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
        found = row("train_on_devices", options.sizes[0], options.epochs, **flags)
        first = first or found["loss"]
        difference = np.abs(np.array(found["loss"]) / first - 1).max()
        print(
            f"| {found['devices']} | {found['bytes'] / 1e6:.1f} | {found['peak']:.0f} | {found['cpu']:.1f} "
            f"| {difference:.1e} |",
            flush=True,
        )


def stores(options, folder: Path) -> list[Path]:
    """One store for each number of cells."""
    made = []
    for cells in options.sizes:
        path = (options.folder or folder) / f"cells_{cells}.zarr"
        if not path.exists():
            make_store(path, cells)
        made.append(path)
    return made


def disk(options, folder: Path) -> None:
    """Memory and time of training from disk."""
    print(f"\n## disk: zarr, {FEATURES:,} features\n")
    print("| cells | source | peak MB | CPU s in all | CPU s of each further epoch | thousand cells a CPU s |")
    print("|---|---|---|---|---|---|")
    for cells, path in zip(options.sizes, stores(options, folder), strict=True):
        for lazily in options.sources:
            found = row("train_stored", str(path), lazily, 1 + options.epochs, 0, "")
            epoch = float(np.median(found["epochs"][1:]))  # the first compiles
            print(
                f"| {cells:,} | {'lazy' if lazily else 'in memory'} | {found['peak']:.0f} | {found['cpu']:.1f} "
                f"| {epoch:.2f} | {0.9 * cells / epoch / 1e3:.1f} |",
                flush=True,
            )


def quality(options, folder: Path) -> None:
    """Loss and neighbours."""
    (path, *_) = stores(options, folder)
    results = {}
    for name, lazily, seed in (("memory", False, 0), ("disk", True, 0), ("memory, seed 1", False, 1)):
        file = folder / f"{name}.npy"
        results[name] = row("train_stored", str(path), lazily, options.epochs, seed, str(file))
        results[name]["embedding"] = np.load(file)
    print(f"\n## quality: {options.sizes[0]:,} cells, {options.epochs} epochs\n")
    expected = results["memory"]
    chosen = np.random.default_rng(0).choice(options.sizes[0], 2000, replace=False)
    print("| training | held-out loss after each epoch | shared 15 nearest cells with memory, seed 0 |\n|---|---|---|")
    for name, found in results.items():
        loss = " ".join(f"{value:.3f}" for value in found["validation_loss"])
        shared = neighbours_shared(expected["embedding"], found["embedding"], chosen)
        print(f"| {name} | {loss} | {shared:.4f} |", flush=True)


def neighbours_shared(left: np.ndarray, right: np.ndarray, cells: np.ndarray, number: int = 15) -> float:
    """Share of the nearest cells of some cells that two embeddings have in common."""

    def nearest(points: np.ndarray) -> np.ndarray:
        """Rows of the nearest other cells."""
        squares = (points**2).sum(1)
        found = []
        for some in np.array_split(cells, 20):
            distance = squares - 2 * points[some] @ points.T
            distance[np.arange(len(some)), some] = np.inf
            found.append(np.argpartition(distance, number, axis=1)[:, :number])
        return np.concatenate(found)

    pairs = zip(nearest(left), nearest(right), strict=True)
    return float(np.mean([len(np.intersect1d(*pair)) / number for pair in pairs]))


def accelerator(options, _: Path) -> None:
    """The default device against the host."""
    cells = options.sizes[0]
    print(f"\n## accelerator: {cells:,} cells, {FEATURES:,} features, {options.epochs} epochs\n")
    print(
        "| device | source | s of a fit of 1 epoch | again | s of a further epoch | held-out loss |\n"
        "|---|---|---|---|---|---|"
    )
    for platform in ("", "cpu"):
        for parts in (False, True):
            environment = {"JAX_PLATFORMS": platform} if platform else {}
            found = row("train_accelerated", cells, options.epochs, parts, **environment)
            loss = " ".join(f"{value:.4f}" for value in found["loss"])
            print(
                f"| {found['device']} | {'disk' if parts else 'memory'} | {found['first']:.1f} "
                f"| {found['again']:.1f} | {found['epoch']:.2f} | {loss} |",
                flush=True,
            )


def main() -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["devices", "disk", "quality"])
    parser.add_argument("--cells", dest="sizes", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--source", dest="sources", choices=["lazy", "memory"], help="one source alone, of disk")
    parser.add_argument("--folder", type=Path, help="where the stores are kept for the next time")
    parser.set_defaults(sizes=[50_000, 200_000])
    options = parser.parse_args()
    options.sources = [True, False] if options.sources is None else [options.sources == "lazy"]
    with tempfile.TemporaryDirectory() as folder:
        for name in options.what:
            {"devices": devices, "disk": disk, "quality": quality, "accelerator": accelerator}[name](
                options, Path(folder)
            )


if __name__ == "__main__":
    main()

"""What work block by block costs: CPU, memory, passes and compilation, here, lazily and on workers.

python benchmarks/scale.py [cost] [memory] [peaks] [compile] [--rows 30000] [--sizes 7500,30000,120000] [--block 256MB]

Every row is a process of its own, which first runs the function on a toy. CPU seconds are of the process and its
workers; memory is the peak of resident memory during the call over that before it (Linux).
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
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import compile_times
import numpy as np
import pandas as pd
import scipy.sparse as sp

GENES, CHUNK, TYPES, DEPTH = 2000, 1000, 8, 230
FUNCTIONS = ("deconvolve", "spatial_genes")
LIMIT = 900  # seconds of a row


def profiles(rng: np.random.Generator) -> pd.DataFrame:
    """Counts per cell of some types."""
    values = rng.gamma(0.35, 1.0, (TYPES, GENES)) + 1e-3
    return pd.DataFrame(
        2000 * values / values.sum(1, keepdims=True),
        index=[f"type_{k}" for k in range(TYPES)],
        columns=[f"gene_{k}" for k in range(GENES)],
    )


def spots(start: int, rows: int, side: int, table: pd.DataFrame) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts of one chunk of a tissue of types in stripes and spots, and the places."""
    rng = np.random.default_rng([7, start])
    index = np.arange(start, start + rows)
    places = np.column_stack([index % side, index // side]).astype(np.float64)
    wave = np.sin(places[:, :1] / np.linspace(4, 30, TYPES)) + np.cos(places[:, 1:] / np.linspace(25, 5, TYPES))
    share = np.exp(1.5 * wave)
    share /= share.sum(1, keepdims=True)
    rate = table.to_numpy() / table.to_numpy().sum(1, keepdims=True)
    counts = rng.poisson(DEPTH * rng.gamma(5, 0.2, (rows, 1)) * (share @ rate))
    return sp.csr_matrix(counts.astype(np.float32)), places


def make_tissue(folder: Path, rows: int) -> Path:
    """A tissue in a zarr store, chunk by chunk."""
    import zarr
    from anndata.io import sparse_dataset, write_elem

    path = folder / f"tissue_{rows}.zarr"
    if path.exists():
        return path
    table, side = profiles(np.random.default_rng(0)), int(np.ceil(np.sqrt(rows)))
    store = zarr.open_group(path, mode="w")
    places = []
    for start in range(0, rows, CHUNK):
        counts, where = spots(start, min(CHUNK, rows - start), side, table)
        if start:
            sparse_dataset(store["X"]).append(counts)
        else:
            write_elem(store, "X", counts)
        places.append(where)
    names = pd.DataFrame(index=pd.Index([f"spot_{k}" for k in range(rows)]))
    for key, value in {
        "obs": names, "var": pd.DataFrame(index=table.columns), "obsm": {"spatial": np.concatenate(places)}
    }.items():  # fmt: skip
        write_elem(store, key, value)
    store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    return path


def open_tissue(path: Path, lazily: bool):
    import anndata as ad
    import zarr
    from anndata.experimental import read_elem_lazy
    from anndata.io import read_elem

    store = zarr.open_group(path, mode="r")
    matrix = read_elem_lazy(store["X"], chunks=(CHUNK, GENES)) if lazily else read_elem(store["X"])
    return ad.AnnData(matrix, obs=read_elem(store["obs"]), var=read_elem(store["var"]), obsm=read_elem(store["obsm"]))


def call(function: str, adata) -> np.ndarray:
    import diffbio_sc as dbio

    if function == "deconvolve":
        dbio.tl.deconvolve(adata, profiles(np.random.default_rng(0)))
        return adata.obsm["deconvolution"].to_numpy()
    dbio.tl.spatial_genes(adata)
    return np.column_stack([adata.var["spatial_score"], adata.var["fsv"]])


def memory(key: str) -> float:
    """Megabytes of this process: VmRSS now, or VmHWM, the largest since the last :func:`forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(key))) / 1e3


def forget_peak() -> float:
    """Begin a new peak; resident memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def peak() -> float:
    return memory("VmHWM")


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def toy(function: str) -> None:
    import anndata as ad

    table = profiles(np.random.default_rng(0))
    counts, places = spots(0, 300, 20, table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(function, ad.AnnData(counts, var=pd.DataFrame(index=table.columns), obsm={"spatial": places}))


def row(function: str, source: str, rows: int, folder: Path, block: str, result: Path) -> dict:
    """One row: the function on one kind of source, twice."""
    from contextlib import ExitStack

    import diffbio_sc as dbio

    dbio.settings.block_bytes = block
    path = (
        make_tissue(folder, rows) if not (folder / f"tissue_{rows}.zarr").exists() else folder / f"tissue_{rows}.zarr"
    )
    toy(function)
    found: dict = {"function": function, "source": source, "rows": rows, "block": block}
    with ExitStack() as stack:
        client = None
        if source.startswith("workers"):
            import distributed

            number = int(source.split()[1])
            cluster = distributed.LocalCluster(n_workers=number, threads_per_worker=1, dashboard_address=None)
            client = stack.enter_context(distributed.Client(stack.enter_context(cluster)))
            found["worker MB before"] = round(max(client.run(memory, "VmRSS").values()))
            if source.endswith("warm"):
                dbio.scale.warm(client)
        adata = open_tissue(path, lazily=source != "memory")
        for time_of in ("first", "second"):
            before, started, wall = forget_peak(), cpu(), time.perf_counter()
            if client is not None:
                client.run(forget_peak)
                workers = sum(client.run(cpu).values())
            values = call(function, adata)
            found[f"CPU s {time_of}"] = round(cpu() - started, 1)
            found[f"wall s {time_of}"] = round(time.perf_counter() - wall, 1)
            found[f"client MB {time_of}"] = round(peak() - before)
            if client is not None:
                found[f"workers CPU s {time_of}"] = round(sum(client.run(cpu).values()) - workers, 1)
                found[f"worker MB {time_of}"] = round(max(client.run(peak).values()))
            if rows > 30_000:
                break
    if source == "memory":
        np.save(result, values)
    elif result.exists():
        found["difference"] = float(np.nanmax(np.abs(values - np.load(result))))
    return found


def run_row(*arguments: object) -> dict:
    """A row in a process of its own."""
    command = [sys.executable, __file__, "row", json.dumps([str(one) for one in arguments])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        return {"row": arguments[:3], "failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(found: dict) -> None:
    print(json.dumps(found), flush=True)


def cost(folder: Path, rows: int, block: str) -> None:
    make_tissue(folder, rows)
    for function in FUNCTIONS:
        for source in ("memory", "lazy", "workers 1 warm", "workers 2 warm"):
            show(run_row(function, source, rows, folder, block, folder / f"{function}_{rows}.npy"))


def grow(folder: Path, sizes: list[int], block: str) -> None:
    for function in FUNCTIONS:
        for rows in sizes:
            make_tissue(folder, rows)
            for source in ("lazy", "workers 2 warm"):
                show(run_row(function, source, rows, folder, block, folder / f"{function}_{rows}.npy"))


def make_fragments(folder: Path, millions: int) -> Path:
    """Fragments with barcodes: 250,000 on each chromosome of 30 million base pairs, a third of them in peaks."""
    path = folder / f"fragments_{millions}.tsv"
    if path.exists():
        return path
    with path.open("w") as file:
        for chromosome in range(4 * millions):
            rng = np.random.default_rng([11, chromosome])
            summits = rng.integers(1000, 30_000_000 - 1000, 600)
            inside = rng.normal(rng.choice(summits, 80_000), 120).astype(int)
            start = np.sort(np.concatenate([inside, rng.integers(0, 30_000_000 - 1000, 170_000)]).clip(0))
            table = pd.DataFrame(
                {
                    "chrom": f"chr{chromosome + 1}",
                    "start": start,
                    "end": start + rng.integers(40, 400, len(start)),
                    "barcode": [f"cell{k}" for k in rng.integers(0, 5000, len(start))],
                    "count": 1,
                }
            )
            table.to_csv(file, sep="\t", header=False, index=False)
    return path


def peak_row(folder: Path, millions: int, kind: str) -> dict:
    """Peaks of one file; of groups of its cells; or of copies of it as replicates."""
    import diffbio_sc as dbio

    toy_file = folder / "toy_fragments.tsv"
    if not toy_file.exists():
        lines = make_fragments(folder, millions).open()
        toy_file.write_text("".join(line for line, _ in zip(lines, range(50_000), strict=False)))
    path = make_fragments(folder, millions)

    def run(where: Path) -> int:
        if kind.startswith("groups"):
            labels = {f"cell{k}": f"type{k % int(kind.split()[1])}" for k in range(5000)}
            return sum(map(len, dbio.tl.call_peaks(where, groupby=labels, mode="narrow").values()))
        if kind.startswith("replicates"):
            files = {f"replicate {k}": where for k in range(int(kind.split()[1]))}
            return len(dbio.tl.call_peaks(files, replicate=True, mode="narrow"))
        return len(dbio.tl.call_peaks(where, mode="narrow"))

    run(toy_file)
    before, started = forget_peak(), cpu()
    number = run(path)
    found = {"peaks": kind, "million fragments": millions, "MB": round(peak() - before)}
    return {**found, "CPU s": round(cpu() - started, 1), "number": number}


def peaks(folder: Path, millions: list[int]) -> None:
    for kind in ("one file", "groups 20", "groups 200", "replicates 8"):
        for number in millions:
            show(run_row("peaks", folder, number, kind))


def main() -> None:
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["row"]:
        arguments = json.loads(sys.argv[2])
        if arguments[0] == "peaks":
            show(peak_row(Path(arguments[1]), int(arguments[2]), arguments[3]))
            return
        function, source, rows, folder, block, result = arguments
        show(row(function, source, int(rows), Path(folder), block, Path(result)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=["cost", "memory", "peaks", "compile"])
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--sizes", default="7500,30000,120000")
    parser.add_argument("--millions", default="2,8", help="millions of fragments")
    parser.add_argument("--block", default="256MB", help="memory of a block")
    parser.add_argument("--folder", type=Path, help="where tissues are kept; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if "cost" in options.tables:
            cost(folder, options.rows, options.block)
        if "memory" in options.tables:
            grow(folder, [int(size) for size in options.sizes.split(",")], options.block)
        if "peaks" in options.tables:
            peaks(folder, [int(number) for number in options.millions.split(",")])
        if "compile" in options.tables:
            compile_times.compile_times(list(compile_times.CASES))


if __name__ == "__main__":
    main()

"""What work block by block costs: CPU, memory, passes and compilation, here, lazily and on workers.

python benchmarks/scale.py [cost] [memory] [peaks] [workers] [compile] [--rows 30000] [--sizes 7500,30000,120000]
    [--millions 2,8,32] [--block 256MB]

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


def make_fragments(folder: Path, millions: int, rows: int = 250_000) -> Path:
    """Fragments with barcodes: so many on each chromosome, of 120 base pairs a fragment, a third of them in peaks."""
    path = folder / f"fragments_{millions}_{rows}.tsv"
    if path.exists():
        return path
    length, lines = 120 * rows, "chr{}\t%d\t%d\tcell%d\t1\n"
    with path.open("w") as file:
        for chromosome in range(1_000_000 * millions // rows):
            rng = np.random.default_rng([11, chromosome])
            summits = rng.integers(1000, length - 1000, 600 * rows // 250_000)
            inside = rng.normal(rng.choice(summits, 8 * rows // 25), 120).astype(int)
            start = np.sort(np.concatenate([inside, rng.integers(0, length - 1000, rows - len(inside))]).clip(0))
            end = start + rng.integers(40, 400, len(start))
            columns = zip(start.tolist(), end.tolist(), rng.integers(0, 5000, len(start)).tolist(), strict=True)
            file.write("".join(map(lines.format(chromosome + 1).__mod__, columns)))
    return path


def make_indexed(folder: Path) -> Path:
    """8 million fragments on 8 chromosomes, compressed by bgzip, with an index of tabix."""
    import pysam

    path = folder / "indexed.tsv.gz"
    if not path.exists():
        pysam.tabix_compress(str(make_fragments(folder, 8, 1_000_000)), str(path))
        pysam.tabix_index(str(path), preset="bed")
    return path


def make_toy(folder: Path) -> Path:
    path = folder / "toy_fragments.tsv"
    if not path.exists():
        with make_fragments(folder, 2).open() as lines:
            path.write_text("".join(line for line, _ in zip(lines, range(50_000), strict=False)))
    return path


def call_fragments(path: Path, kind: str) -> int:
    """Number of peaks of one file; of groups of its cells; or of copies of it as replicates."""
    import diffbio_sc as dbio

    mode = "auto" if kind.endswith("auto") else "narrow"
    if kind.startswith("groups"):
        labels = {f"cell{k}": f"type{k % int(kind.split()[1])}" for k in range(5000)}
        return sum(map(len, dbio.tl.call_peaks(path, groupby=labels, mode=mode).values()))
    if kind.startswith("replicates"):
        files = {f"replicate {k}": path for k in range(int(kind.split()[1]))}
        return len(dbio.tl.call_peaks(files, replicate=True, mode=mode))
    return len(dbio.tl.call_peaks(path, mode=mode))


def peak_row(folder: Path, millions: int, kind: str) -> dict:
    """Peaks of a file in this process."""
    path = make_fragments(folder, millions)
    call_fragments(make_toy(folder), kind)
    before, started = forget_peak(), cpu()
    number = call_fragments(path, kind)
    found = {"peaks": kind, "million fragments": millions, "MB": round(peak() - before)}
    return {**found, "CPU s": round(cpu() - started, 1), "number": number}


def ready_peaks(path: str) -> None:
    """Load what peaks take in a worker."""
    from diffbio_sc.engines.interval_peaks import stream_peaks
    from diffbio_sc.engines.peak_settings import PeakSettings
    from diffbio_sc.io import read_intervals

    stream_peaks(read_intervals(path), None, PeakSettings(mode="narrow"))


def peak_workers_row(folder: Path, workers: int, kind: str) -> dict:
    """Peaks of the indexed file on workers; 0 workers: in this process."""
    from contextlib import ExitStack

    toy, path = make_toy(folder), make_indexed(folder)
    with ExitStack() as stack:
        client = None
        if workers:
            import distributed

            cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            client = stack.enter_context(distributed.Client(stack.enter_context(cluster)))
            client.run(ready_peaks, str(toy))
        call_fragments(toy, kind)
        before, started, wall = forget_peak(), cpu(), time.perf_counter()
        theirs = client.run(cpu) if client is not None else {}
        held = client.run(forget_peak) if client is not None else {}
        number = call_fragments(path, kind)
        found = {"peaks": kind, "workers": workers, "wall s": round(time.perf_counter() - wall, 1)}
        found |= {"CPU s": round(cpu() - started, 1), "MB": round(peak() - before), "number": number}
        if client is not None:
            used = [round(value - theirs[key], 1) for key, value in client.run(cpu).items()]
            found["CPU s of each worker"] = used
            found["worker MB"] = round(max(value - held[key] for key, value in client.run(peak).items()))
    return found


def peaks(folder: Path, millions: list[int]) -> None:
    for kind in ("one file", "one file, auto", "groups 20", "groups 200", "replicates 8"):
        for number in millions:
            if number <= 8 or kind.startswith("one file"):
                show(run_row("peaks", folder, number, kind))


def peak_workers(folder: Path) -> None:
    for kind in ("one file", "groups 20"):
        for workers in (0, 1, 2):
            show(run_row("peak workers", folder, workers, kind))


def main() -> None:
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["row"]:
        arguments = json.loads(sys.argv[2])
        if arguments[0] == "peaks":
            show(peak_row(Path(arguments[1]), int(arguments[2]), arguments[3]))
            return
        if arguments[0] == "peak workers":
            show(peak_workers_row(Path(arguments[1]), int(arguments[2]), arguments[3]))
            return
        function, source, rows, folder, block, result = arguments
        show(row(function, source, int(rows), Path(folder), block, Path(result)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=["cost", "memory", "peaks", "workers", "compile"])
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--sizes", default="7500,30000,120000")
    parser.add_argument("--millions", default="2,8,32", help="millions of fragments")
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
        if "workers" in options.tables:
            peak_workers(folder)
        if "compile" in options.tables:
            compile_times.compile_times(list(compile_times.CASES))


if __name__ == "__main__":
    main()

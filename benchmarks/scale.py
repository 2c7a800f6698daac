"""What work block by block costs: CPU, memory, passes and compilation, here, lazily and on workers.

python benchmarks/scale.py [cost] [memory] [settings] [million] [peaks] [workers] [compile] [training] [--quick]
    [--rows 30000] [--sizes 7500,30000,120000] [--block 256MB] [--functions spatial_genes] [--millions 2,8]
    [--kinds "groups 200" "replicates 8"] [--write run.json] [--compare benchmarks/baseline/scale.json]

Every row is a process of its own, which first runs the function on a toy. CPU seconds are of the process and its
workers; memory is the peak of resident memory during the call over that before it (Linux). The exit status is 1 if a
row failed, differs from its reference, or takes a fifth more CPU or memory than the stored run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
if __name__ == "__main__":  # not where a worker imports this file: scale.warm gives it as many threads as it has
    os.environ.setdefault("NPROC", "2")  # XLA's pool, whatever the machine
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import compile_times
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scale_records import as_run, commit, judge, machine, yardstick

GENES, CHUNK, TYPES, DEPTH = 2000, 1000, 8, 230
FUNCTIONS = ("deconvolve", "spatial_genes")
LIMIT = 900  # seconds of a row
SETTINGS = ("memory", "no client", "threads 4", "workers 2 x 1", "workers 1 x 2", "two threads")
QUICK_SETTINGS = ("memory", "threads 4", "workers 2 x 1")
SOURCES = ("memory", "lazy", "workers 1 warm", "workers 2 warm")
QUICK_SOURCES = ("memory", "lazy", "workers 2 warm")
SETTING_LIMIT = 120  # seconds of each function, twice, in a setting
KINDS = ("one file", "one file, auto", "groups 20", "groups 200", "replicates 8")  # of calls of peaks
MILLION, MILLION_GENES, MILLION_CHUNK, MILLION_COUNTS = 1_200_000, 200, 10_000, 40
CAP = 2000  # megabytes that a process of the million may take
SHOWN: list[dict] = []  # all rows


def profiles(rng: np.random.Generator, genes: int = GENES) -> pd.DataFrame:
    """Counts per cell of some types."""
    values = rng.gamma(0.35, 1.0, (TYPES, genes)) + 1e-3
    return pd.DataFrame(
        2000 * values / values.sum(1, keepdims=True),
        index=[f"type_{k}" for k in range(TYPES)],
        columns=[f"gene_{k}" for k in range(genes)],
    )


def places_and_shares(index: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of spots on a square, and the types' shares in stripes."""
    places = np.column_stack([index % side, index // side]).astype(np.float64)
    wave = np.sin(places[:, :1] / np.linspace(4, 30, TYPES)) + np.cos(places[:, 1:] / np.linspace(25, 5, TYPES))
    share = np.exp(1.5 * wave)
    return places, share / share.sum(1, keepdims=True)


def spots(start: int, rows: int, side: int, table: pd.DataFrame) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts of one chunk of a tissue of types in stripes and spots, and the places."""
    rng = np.random.default_rng([7, start])
    places, share = places_and_shares(np.arange(start, start + rows), side)
    rate = table.to_numpy() / table.to_numpy().sum(1, keepdims=True)
    counts = rng.poisson(DEPTH * rng.gamma(5, 0.2, (rows, 1)) * (share @ rate))
    return sp.csr_matrix(counts.astype(np.float32)), places


def written(adata) -> float:
    """Megabytes of the tables of an object, all but its matrix."""
    tables = [adata.obs, adata.var, *adata.obsm.values()]
    sizes = [np.sum(one.memory_usage()) if hasattr(one, "memory_usage") else one.nbytes for one in tables]
    return float(sum(sizes)) / 1e6


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
    if function == "spatial_patterns":
        dbio.tl.spatial_patterns(adata)
        return np.asarray(adata.obsm["spatial_patterns"], np.float64)
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


@contextmanager
def cluster(**options):
    """A local cluster as the documentation recommends, and its client."""
    import dask
    import distributed

    threads = os.environ.pop("NPROC", None)  # workers would have it from here
    with (
        dask.config.set({"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"}),
        distributed.LocalCluster(dashboard_address=None, **options) as local,
        distributed.Client(local) as client,
    ):
        if threads is not None:
            os.environ["NPROC"] = threads
        yield client


def row(function: str, source: str, rows: int, folder: Path, block: str, result: Path, calls: int) -> dict:
    """One row: the function on one kind of source, once or twice."""
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
            client = stack.enter_context(cluster(n_workers=int(source.split()[1]), threads_per_worker=1))
            found["worker MB before"] = round(max(client.run(memory, "VmRSS").values()))
            if source.endswith("warm"):
                dbio.scale.warm(client)
        adata = open_tissue(path, lazily=source != "memory")
        read = written(adata)
        for time_of in ("first", "second")[:calls]:
            before, started, wall = forget_peak(), cpu(), time.perf_counter()
            if client is not None:
                client.run(forget_peak)
                workers = sum(client.run(cpu).values())
            values = call(function, adata)
            found[f"CPU s {time_of}"] = round(cpu() - started, 2)
            found[f"wall s {time_of}"] = round(time.perf_counter() - wall, 2)
            found[f"client MB {time_of}"] = round(peak() - before)
            if client is not None:
                found[f"workers CPU s {time_of}"] = round(sum(client.run(cpu).values()) - workers, 2)
                found[f"worker MB {time_of}"] = round(max(client.run(peak).values()))
            found.setdefault("MB of the result", round(written(adata) - read, 1))
    if source == "memory":
        np.save(result, values)
    elif result.exists():
        found["difference"] = float(np.nanmax(np.abs(values - np.load(result))))
    return found


def run_row(*arguments: object, limit: int = LIMIT) -> dict:
    """A row in a process of its own."""
    words = [str(one) for one in arguments]
    command = [sys.executable, __file__, "row", json.dumps(words)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"row": words[:4], "failed": f"no end after {limit} s"}
    if done.returncode:
        return {"row": words[:4], "failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(found: dict) -> None:
    SHOWN.append(found)
    print(json.dumps(found), flush=True)


def cost(folder: Path, rows: int, block: str, functions: Sequence[str], sources: Sequence[str]) -> None:
    make_tissue(folder, rows)
    for function in functions:
        in_memory, one_worker = 0.0, 0.0
        for source in sources:
            found = run_row(function, source, rows, folder, block, folder / f"{function}_{rows}.npy", 2)
            total = found.get("CPU s second", 0.0) + found.get("workers CPU s second", 0.0)
            in_memory = in_memory or total
            if in_memory and total:
                found["over memory"] = round(total / in_memory, 2)
            if source.startswith("workers") and "workers CPU s second" in found:
                more = found["workers CPU s first"] - found["workers CPU s second"]
                found["CPU s a worker more in the first call"] = round(more / int(source.split()[1]), 2)
            if source.startswith("workers 1"):
                one_worker = found.get("wall s second", 0.0)
            elif source.startswith("workers") and one_worker and "wall s second" in found:
                found["wall over one worker"] = round(found["wall s second"] / one_worker, 2)
            show({"table": "cost", **found})


def grow(folder: Path, sizes: list[int], block: str, functions: Sequence[str]) -> None:
    for function in functions:
        for source in ("lazy", "workers 2 warm"):
            first: dict = {}
            for rows in sizes:
                wanted = {"function": function, "source": source, "rows": rows, "block": block}
                found = next((one for one in SHOWN if wanted.items() <= one.items()), None)  # the row of cost
                if found is None:
                    make_tissue(folder, rows)
                    found = run_row(function, source, rows, folder, block, folder / f"{function}_{rows}.npy", 1)
                first = first or found
                show({**found, "table": "memory", **_growth(found, first)})


def _growth(found: dict, first: dict) -> dict:
    """By how many megabytes a process of more spots is larger, and that by spot; the written result left out."""
    grown = {}
    more = found.get("rows", 0) - first.get("rows", 0)
    for key, result in (("client MB first", "MB of the result"), ("worker MB first", None)):
        if more > 0 and key in found and key in first:
            larger = found[key] - first[key] - (found[result] - first[result] if result else 0.0)
            name = key.removesuffix(" MB first")
            grown |= {f"{name} grown, MB": round(larger), f"{name} grown, bytes a spot": round(1e6 * larger / more)}
    return grown


def setting_row(setting: str, rows: int, folder: Path) -> dict:
    """All functions in one setting, with a block for each chunk, against the row of memory: second calls."""
    import diffbio_sc as dbio

    dbio.settings.block_bytes = 4 * GENES * (CHUNK + 1)
    path = make_tissue(folder, rows)
    options = {
        "threads 4": {"n_workers": 1, "threads_per_worker": 4, "processes": False},
        "workers 2 x 1": {"n_workers": 2, "threads_per_worker": 1},
        "workers 1 x 2": {"n_workers": 1, "threads_per_worker": 2},
    }.get(setting)
    found: dict = {"setting": setting, "rows": rows, "CPU s": 0.0}
    with ExitStack() as stack:
        client = None
        if options is not None:
            client = stack.enter_context(cluster(**options))
            dbio.scale.warm(client)
        copies = [open_tissue(path, lazily=setting != "memory") for _ in range(2 if setting == "two threads" else 1)]
        for function in (*FUNCTIONS, "spatial_patterns"):
            for _ in range(2):
                started = cpu() + _elsewhere(client)
                values = _at_once(function, copies)
                used = (cpu() + _elsewhere(client) - started) / len(copies)
            found["CPU s"] += used
            stored = folder / f"setting_{function}_{rows}.npz"
            if setting == "memory":
                np.savez(stored, values=values[0], used=used)
                continue
            memory_of = np.load(stored)
            found[f"{function} over memory"] = round(used / float(memory_of["used"]), 2)
            found[f"{function} difference"] = max(float(np.nanmax(np.abs(one - memory_of["values"]))) for one in values)
    return {**found, "CPU s": round(found["CPU s"], 1)}


def _elsewhere(client) -> float:
    """CPU seconds of workers in other processes."""
    return 0.0 if client is None else sum(used for pid, used in client.run(_cpu_of).values() if pid != os.getpid())


def _cpu_of() -> tuple[int, float]:
    return os.getpid(), cpu()


def _at_once(function: str, copies: list) -> list[np.ndarray]:
    """The function on all copies, each in a thread of its own if there are several."""
    if len(copies) == 1:
        return [call(function, copies[0])]
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda one=one: found.append(call(function, one))) for one in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) < len(copies):
        raise RuntimeError("a thread failed")
    return found


def try_settings(folder: Path, rows: int, settings: Sequence[str]) -> None:
    make_tissue(folder, rows)
    for setting in settings:
        show({"table": "settings", **run_row("setting", setting, rows, folder, limit=3 * SETTING_LIMIT)})


def made_spots(start: int, rows: int, side: int, cumulative: np.ndarray) -> sp.csr_matrix:
    """Counts of one chunk, drawn one by one: its type from the spot's shares, its gene from the type's profile."""
    rng = np.random.default_rng([13, start])
    share = places_and_shares(np.arange(start, start + rows), side)[1].cumsum(1)
    spot = np.repeat(np.arange(rows), rng.poisson(MILLION_COUNTS, rows))
    kind = (rng.random(len(spot))[:, None] > share[spot, :-1]).sum(1)
    # Row k of the cumulative profiles lies between k and k + 1.
    genes = cumulative.shape[1]
    gene = np.searchsorted(cumulative.ravel(), kind + rng.random(len(spot))) - kind * genes
    ones = np.ones(len(spot), np.float32)
    return sp.csr_matrix((ones, (spot, np.clip(gene, 0, genes - 1))), shape=(rows, genes))


def million_row(function: str, rows: int) -> dict:
    """A tissue that is made as it is read, in this process, which ends itself beyond ``CAP``.

    Resident memory is watched, not address space, of which compiled code reserves more than it uses.
    """
    import anndata as ad
    import dask
    import dask.array as da

    import diffbio_sc as dbio

    dbio.settings.block_bytes = "64MB"
    toy(function)
    side, table = int(np.ceil(np.sqrt(rows))), profiles(np.random.default_rng(0), MILLION_GENES)
    rate = table.to_numpy().cumsum(1)
    cumulative = rate / rate[:, -1:] + np.arange(TYPES)[:, None]
    make = dask.delayed(made_spots, pure=False)
    matrix = da.concatenate(
        [
            da.from_delayed(
                make(start, min(MILLION_CHUNK, rows - start), side, cumulative),
                (min(MILLION_CHUNK, rows - start), MILLION_GENES),
                meta=sp.csr_matrix((0, 0), dtype=np.float32),
            )
            for start in range(0, rows, MILLION_CHUNK)
        ]
    )
    places, share = places_and_shares(np.arange(rows), side)
    adata = ad.AnnData(matrix, var=pd.DataFrame(index=table.columns), obsm={"spatial": places})
    share = share.astype(np.float32)
    threading.Thread(target=_watch, daemon=True).start()
    before, started, wall = forget_peak(), cpu(), time.perf_counter()
    if function == "deconvolve":
        dbio.tl.deconvolve(adata, table)
        error = np.sqrt(np.nanmean((adata.obsm["deconvolution"].to_numpy() - share) ** 2))
        result = {"RMSE of the proportions": round(float(error), 4)}
    else:
        dbio.tl.spatial_genes(adata)
        result = {"genes found": int(adata.var["is_spatial"].sum())}
    return {
        "function": function,
        "rows": rows,
        "genes": MILLION_GENES,
        "CPU s": round(cpu() - started, 1),
        "wall s": round(time.perf_counter() - wall, 1),
        "MB before": round(before),
        "MB of the process": round(peak()),
        "bytes a spot": round((peak() - before) * 1e6 / rows),
        **result,
    }


def _watch() -> None:
    while True:
        if memory("VmRSS") > CAP:
            print(f"more than {CAP} MB", file=sys.stderr, flush=True)
            os._exit(3)
        time.sleep(0.1)


def million(rows: int, functions: Sequence[str]) -> None:
    for function in functions:
        show({"table": "million", **run_row("million", function, rows)})


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


def call_fragments(path: Path, kind: str) -> list[pd.DataFrame]:
    """Peaks of one file; of groups of its cells; or of copies of it as replicates."""
    import diffbio_sc as dbio

    mode = "auto" if kind.endswith("auto") else "narrow"
    if kind.startswith("groups"):
        labels = {f"cell{k}": f"type{k % int(kind.split()[1])}" for k in range(5000)}
        return list(dbio.tl.call_peaks(path, groupby=labels, mode=mode).values())
    if kind.startswith("replicates"):
        files = {f"replicate {k}": path for k in range(int(kind.split()[1]))}
        return [dbio.tl.call_peaks(files, replicate=True, mode=mode)]
    return [dbio.tl.call_peaks(path, mode=mode)]


def megabytes_of(tables: list[pd.DataFrame]) -> float:
    """What tables of peaks take: eight bytes a value, and the names, which are texts of their own."""
    values = sum(float(table.memory_usage(index=False).sum()) for table in tables)
    return (values + sum(sum(map(sys.getsizeof, table["name"])) for table in tables)) / 1e6


def peak_row(folder: Path, millions: int, kind: str) -> dict:
    """Peaks of a file in this process."""
    path = make_fragments(folder, millions)
    call_fragments(make_toy(folder), kind)
    before, started = forget_peak(), cpu()
    tables = call_fragments(path, kind)
    found = {"peaks": kind, "million fragments": millions, "MB": round(peak() - before)}
    found |= {"CPU s": round(cpu() - started, 1), "MB of the tables": round(megabytes_of(tables))}
    return {**found, "number": sum(map(len, tables))}


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
        number = sum(map(len, call_fragments(path, kind)))
        found = {"peaks": kind, "workers": workers, "wall s": round(time.perf_counter() - wall, 2)}
        found |= {"CPU s": round(cpu() - started, 1), "MB": round(peak() - before), "number": number}
        if client is not None:
            used = [round(value - theirs[key], 1) for key, value in client.run(cpu).items()]
            found["CPU s of each worker"] = used
            found["worker MB"] = round(max(value - held[key] for key, value in client.run(peak).items()))
    return found


def peaks(folder: Path, millions: list[int], kinds: Sequence[str] | None) -> None:
    for kind in kinds or KINDS:
        for number in millions:
            if kinds or kind != "groups 200" or number == min(millions):  # a minute for 8 million, four for 32
                show(run_row("peaks", folder, number, kind))


def peak_workers(folder: Path, kinds: Sequence[str]) -> None:
    for kind in kinds:
        for workers in (0, 1, 2):
            show(run_row("peak workers", folder, workers, kind))


def training() -> None:
    """Training on several devices of the host, a small case of ``scale_training.py``."""
    script = Path(__file__).with_name("scale_training.py")
    subprocess.run([sys.executable, str(script), "devices", "--cells", "8000"], check=True, timeout=LIMIT)


TABLES = ("cost", "memory", "settings", "million", "peaks", "workers", "compile", "training")
# Of functions that work block by block; all others by compile_times.py.
COMPILED = ("tl.deconvolve", "tl.spatial_genes", "tl.spatial_patterns", "tl.call_peaks")


def main() -> None:
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["row"]:
        arguments = json.loads(sys.argv[2])
        if arguments[0] == "setting":
            show(setting_row(arguments[1], int(arguments[2]), Path(arguments[3])))
            return
        if arguments[0] == "million":
            show(million_row(arguments[1], int(arguments[2])))
            return
        if arguments[0] == "peaks":
            show(peak_row(Path(arguments[1]), int(arguments[2]), arguments[3]))
            return
        if arguments[0] == "peak workers":
            show(peak_workers_row(Path(arguments[1]), int(arguments[2]), arguments[3]))
            return
        function, source, rows, folder, block, result, calls = arguments
        show(row(function, source, int(rows), Path(folder), block, Path(result), int(calls)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"default: all, {' '.join(TABLES)}")
    parser.add_argument("--quick", action="store_true", help="a small tissue; cost, settings and peaks")
    parser.add_argument("--rows", type=int, help="spots of the table of cost; default 30000, quick 7500")
    parser.add_argument("--sizes", help="spots of the table of memory; default 7500,30000,120000")
    parser.add_argument("--million", type=int, default=MILLION, help="spots that are made on the fly")
    parser.add_argument("--millions", help="millions of fragments; default 2,8, quick 2")
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=FUNCTIONS, help="of cost, memory, million")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        help="calls of the tables peaks and workers; without, 200 groups for the first number only",
    )
    parser.add_argument("--block", default="256MB", help="memory of a block")
    parser.add_argument("--folder", type=Path, help="where tissues are kept; default: a temporary folder")
    parser.add_argument("--write", type=Path, help="file for the run")
    parser.add_argument("--compare", type=Path, help="stored run, which may not be exceeded by more than a fifth")
    options = parser.parse_args()
    quick = options.quick
    tables = options.tables or (("cost", "settings", "peaks") if quick else TABLES)
    if unknown := set(tables) - set(TABLES):
        parser.error(f"no tables {sorted(unknown)}; there are {' '.join(TABLES)}")
    sizes = [int(size) for size in (options.sizes or "7500,30000,120000").split(",")]
    millions = [int(number) for number in (options.millions or ("2" if quick else "2,8")).split(",")]
    rows = options.rows or (7500 if quick else 30_000)
    print(json.dumps({"commit": commit(), **machine()}), flush=True)
    measures = [yardstick()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if "cost" in tables:
            cost(folder, rows, options.block, options.functions, QUICK_SOURCES if quick else SOURCES)
        if "memory" in tables:
            grow(folder, sizes, options.block, options.functions)
        if "settings" in tables:
            try_settings(folder, 7500, QUICK_SETTINGS if quick else SETTINGS)
        if "million" in tables:
            million(options.million, options.functions)
        if "peaks" in tables:
            peaks(folder, millions, options.kinds)
        if "workers" in tables:
            peak_workers(folder, options.kinds or ("one file", "groups 20"))
        if "compile" in tables:
            compile_times.compile_times(list(COMPILED))
        if "training" in tables:
            training()
    measures.append(yardstick())
    raise SystemExit(finish(options, sum(measures) / 2))


def finish(options: argparse.Namespace, seconds: float) -> int:
    """Store and compare the run; the exit status."""
    bad = [found for found in SHOWN if "failed" in found or _difference(found) > 1e-6]
    for found in bad:
        print("FAILED", json.dumps(found))
    run = as_run([found for found in SHOWN if "failed" not in found], seconds)
    print(json.dumps({"yardstick, CPU s": round(seconds, 3)}))
    status = int(bool(bad))
    if options.compare is not None:
        result = judge(run, options.compare)
        print(result.table())
        print(result.summary())
        status = max(status, result.exit_code)
    if options.write is not None:
        options.write.write_text(json.dumps(run.to_dict(), indent=2) + "\n")
    return status


def _difference(found: dict) -> float:
    return max((value for key, value in found.items() if key.endswith("difference")), default=0.0)


if __name__ == "__main__":
    main()

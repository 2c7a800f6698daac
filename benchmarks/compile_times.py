"""What the first call of each public function costs over the second, and what a little more data compiles.

python benchmarks/compile_times.py [function ...]

Of each function a fresh process makes two calls on data of one shape, then one on data with 7 % more rows (spots,
cells, bins, regions), which are padded to the same size. The first process of a function finds an empty store of
compiled programs, the second the store that this left. CPU seconds are of the process and its children; libraries that
the first call loads count, and code of numba as well as that of XLA. What a function needs to have been run before,
such as a fit, is run before and not counted.
"""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import numpy as np
import pandas as pd

LIMIT = 900  # seconds of a process
MORE = 1.07
_COMPILED = "/jax/core/compile/backend_compile_duration"  # also of programs that are found in the store
_FOUND = "/jax/compilation_cache/cache_retrieval_time_sec"


def tissue(more: float = 1.0):
    import anndata as ad
    from scale import profiles, spots

    table = profiles(np.random.default_rng(0))
    counts, places = spots(0, int(900 * more), 30, table)
    return ad.AnnData(counts, var=pd.DataFrame(index=table.columns), obsm={"spatial": places})


def run(path: str, data: Any, **options: Any) -> Any:
    """Call a public function by its name within the package."""
    import diffbio_sc as dbio

    package, name = path.split(".")
    return getattr(getattr(dbio, package), name)(data, **options)


def after(make: Callable[[float], Any], *steps: Callable[[Any], Any]) -> Callable[[float], Any]:
    """Data to which other functions were applied before."""

    def made(more: float = 1.0):
        data = make(more)
        for step in steps:
            step(data)
        return data

    return made


def deconvolve(adata) -> None:
    from scale import profiles

    run("tl.deconvolve", adata, reference=profiles(np.random.default_rng(0)))


def multiomics(more: float = 1.0):
    cells = run_dataset("simulate_multiomics", n_cells=int(590 * MORE))
    return cells[: int(590 * more)].copy()


def run_dataset(name: str, **options: Any) -> Any:
    import diffbio_sc as dbio

    return getattr(dbio.datasets, name)(**options)


def fitted(more: float = 1.0):
    """Cells of a fitted model, and further ones to encode."""
    data = multiomics(more)
    run("tl.multiomics_vae", data, max_epochs=2)
    return data, multiomics(more)


def unread_regions(more: float = 1.0):
    """Of one sample and one split: chromosomes to hold out are chosen by their sizes, which would be others."""
    adata = run_dataset("simulate_regulatory_regions", n_regions=int(590 * MORE))[:, : int(590 * more)].copy()
    adata.var["split"] = np.where(np.arange(adata.n_vars) % 10 == 0, "val", "train")
    return adata


def regions(more: float = 1.0):
    adata = unread_regions(more)
    run("pp.sequences", adata)
    return adata


def held_out_regions(more: float = 1.0):
    adata = regions(more)
    adata.var["split"] = np.where(np.arange(adata.n_vars) % 10 == 1, "test", adata.var["split"])
    return adata


def named_regions(more: float = 1.0):
    import anndata as ad

    names = [f"chr1:{start}-{start + 500}" for start in range(0, int(600_000 * more), 1000)]
    return ad.AnnData(np.ones((2, len(names)), np.float32), var=pd.DataFrame(index=names))


def model_of_regions(adata) -> None:
    run("tl.contextual", adata, refine=False, average=False)


def fragments(more: float = 1.0):
    return run_dataset("simulate_fragments", n_cells=int(200 * more))


def bins(more: float = 1.0, bin_size: int = 50):
    return run("pp.coverage", fragments(more)[0], bin_size=bin_size)


def train_peaks(data) -> None:
    adata, places = data
    labels = places.iloc[:10].assign(annotation="peaks", sample=adata.obs_names[0])
    run("tl.train_peaks", adata, labels=labels)


def contact_map(more: float = 1.0, **options: Any):
    return run_dataset("simulate_contacts", n_bins=int(500 * more), **options)


def compare_contacts(adata) -> None:
    groups = {name: [f"contacts_{name}_{k}" for k in (1, 2)] for name in "ab"}
    run("tl.differential_contacts", adata, groups=groups, features=["loops"], loops=adata.uns["truth"]["loops"])


def states(more: float = 1.0, **options: Any):
    return run_dataset("simulate_chromatin_states", n_bins=int(8000 * more), **options)


def transcribed(adata) -> pd.DataFrame:
    return adata.obs[adata.obs["truth"] == "Transcribed"][["chrom", "start", "end"]]


def named_states(adata) -> None:
    adata.obs["chromatin_state"] = adata.obs["truth"]


def cells_of_contacts(more: float = 1.0):
    import diffbio_sc as dbio

    maps = {
        f"cell_{k}": run_dataset("simulate_contacts", n_bins=int(300 * more), contacts_per_bin=20, rng=k)
        for k in range(3)
    }
    return dbio.io.ContactCells(maps)


def balanced(adata) -> None:
    run("tl.balance", adata)


def analysed(adata) -> None:
    run("tl.contacts", adata, phasing_track="gc")


def looped(adata) -> None:
    balanced(adata)
    run("tl.loops", adata)


def of(path: str, **options: Any) -> Callable[[Any], Any]:
    return partial(run, path, **options)


CASES: dict[str, tuple[Callable[[float], Any], Callable[[Any], Any]]] = {
    "tl.deconvolve": (tissue, deconvolve),
    "tl.spatial_genes": (tissue, of("tl.spatial_genes")),
    "tl.spatial_patterns": (after(tissue, of("tl.spatial_genes")), of("tl.spatial_patterns")),
    "tl.combine_features": (
        after(tissue, deconvolve),
        of("tl.combine_features", keys=["deconvolution", "spatial"]),
    ),
    "tl.multiomics_vae": (multiomics, of("tl.multiomics_vae")),
    "tl.multiomics_vae trained": (multiomics, of("tl.multiomics_vae", max_epochs=2)),
    "tl.multiomics_encode": (fitted, lambda data: run("tl.multiomics_encode", data[1], fitted=data[0])),
    "tl.multiomics_impute": (fitted, lambda data: run("tl.multiomics_impute", data[0], modality="atac")),
    "tl.multiomics_score": (fitted, lambda data: run("tl.multiomics_score", data[0])),
    "tl.contextual": (regions, of("tl.contextual")),
    "tl.contextual_predict": (
        after(regions, model_of_regions),
        lambda adata: run("tl.contextual_predict", adata.copy(), model=adata),
    ),
    "tl.contextual_ablation": (held_out_regions, of("tl.contextual_ablation", n_seeds=1, refine=False, average=False)),
    "tl.attributions": (after(regions, model_of_regions), lambda adata: run("tl.attributions", adata)),
    "tl.call_peaks": (lambda more=1.0: fragments(more)[0], of("tl.call_peaks")),
    "tl.peaks": (bins, of("tl.peaks")),
    "tl.train_peaks": (lambda more=1.0: (bins(more, 200), fragments(more)[1]), train_peaks),
    "tl.contacts": (contact_map, of("tl.contacts", phasing_track="gc")),
    "tl.balance": (contact_map, balanced),
    "tl.coverage_stats": (contact_map, of("tl.coverage_stats")),
    "tl.expected": (after(contact_map, balanced), of("tl.expected")),
    "tl.compartments": (after(contact_map, balanced), of("tl.compartments", phasing_track="gc")),
    "tl.insulation": (after(contact_map, balanced), of("tl.insulation")),
    "tl.loops": (after(contact_map, balanced), of("tl.loops")),
    "tl.saddle": (after(contact_map, analysed), of("tl.saddle")),
    "tl.pileup": (after(contact_map, analysed), of("tl.pileup", features="loops")),
    "tl.merge_loops": (
        lambda more=1.0: (
            after(contact_map, looped)(more),
            after(partial(contact_map, resolution=20_000), looped)(more / 2),
        ),
        lambda data: run("tl.merge_loops", data[0], others=[data[1]]),
    ),
    "tl.differential_contacts": (partial(contact_map, n_replicates=2, n_conditions=2), compare_contacts),
    "tl.chromatin_states": (states, of("tl.chromatin_states", n_states=5)),
    "tl.select_n_states": (states, of("tl.select_n_states", n_states=[2, 3, 4], folds=2)),
    "tl.match_states": (states, of("tl.match_states", key="truth")),
    "tl.state_enrichment": (
        states,
        lambda adata: run("tl.state_enrichment", adata, annotations={"genes": transcribed(adata)}, column="truth"),
    ),
    "tl.state_reproducibility": (
        after(partial(states, n_replicates=2), named_states),
        of("tl.state_reproducibility", replicate_key="replicate"),
    ),
    "tl.merge_peaks": (
        lambda more=1.0: run("tl.call_peaks", fragments(more)[0], groupby=fragments(more)[2]),
        of("tl.merge_peaks"),
    ),
    "pp.binarize": (partial(states, family="poisson"), of("pp.binarize")),
    "pp.coverage": (lambda more=1.0: fragments(more)[0], of("pp.coverage", bin_size=50)),
    "pp.parse_regions": (named_regions, of("pp.parse_regions")),
    "pp.pseudobulk": (fragments, lambda data: run("pp.pseudobulk", data[0], groupby=data[2])),
    "pp.combine_contacts": (
        lambda more=1.0: {name: contact_map(more, rng=k) for k, name in enumerate("ab")},
        of("pp.combine_contacts"),
    ),
    "pp.contact_profiles": (cells_of_contacts, of("pp.contact_profiles")),
    "pp.sequences": (unread_regions, of("pp.sequences")),
    "pp.tf_context": (
        regions,
        lambda adata: run("pp.tf_context", adata, expression=adata.obsm["tf_context"], key_added="again"),
    ),
}


def cpu() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def measure(name: str) -> dict:
    """Two calls in this process, and what one with more rows compiles."""
    import jax

    make, call = CASES[name]
    programs: list[str] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event in (_COMPILED, _FOUND):
            programs.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    seconds, compiled = [], []
    for more in (1.0, 1.0, MORE):
        data = make(more)
        programs.clear()
        started = cpu()
        call(data)
        seconds.append(cpu() - started)
        compiled.append(programs.count(_COMPILED))
    return {
        "function": name,
        "CPU s first": round(seconds[0], 2),
        "second": round(seconds[1], 2),
        "difference": round(seconds[0] - seconds[1], 2),
        "programs": compiled[0],
        "again": compiled[1],
        "7 % more rows": compiled[2],
    }


def compile_times(names: list[str]) -> None:
    """One line a function and store."""
    # As installers do: a checkout whose bytecode may not be written would be parsed by each process.
    package = importlib.util.find_spec("diffbio_sc")
    for folder in package.submodule_search_locations if package else ():
        compileall.compile_dir(folder, quiet=2)
    for name in names:
        with tempfile.TemporaryDirectory() as store:
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": store, "NUMBA_CACHE_DIR": f"{store}/numba"}
            # All programs, also elementary ones: what the package sets when it keeps them (diffbio_sc.scale.warm).
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
            for store_is in ("empty", "filled"):
                done = subprocess.run(
                    [sys.executable, __file__, "--measure", name],
                    capture_output=True, text=True, timeout=LIMIT, check=False, env=environment,
                )  # fmt: skip
                if done.returncode:
                    print(json.dumps({"function": name, "failed": done.stderr.strip().splitlines()[-1:]}), flush=True)
                    break
                found = json.loads(done.stdout.strip().splitlines()[-1])
                print(json.dumps({"store": store_is, **found}), flush=True)


def main() -> None:
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
        return
    unknown = sorted(set(sys.argv[1:]) - set(CASES))
    if unknown:
        raise SystemExit(f"unknown functions {unknown}; known: {list(CASES)}")
    compile_times(sys.argv[1:] or list(CASES))


if __name__ == "__main__":
    main()

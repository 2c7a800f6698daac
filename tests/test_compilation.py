"""A second call on a little more data compiles nothing: rows and features are padded, and nothing runs unjitted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from compiled_programs import compiled_programs

import diffbio_sc as dbio
from diffbio_sc.numerics.placing import device_copy

SPOTS, MORE_SPOTS = 300, 320  # 7 % more; both are padded to 320
CELLS, MORE_CELLS = 322, 345  # padded to 352, of which 320 to train on
REGIONS, MORE_REGIONS = 328, 351  # padded to 352, of which 320 to train on; two and three motifs grow from them


def signatures(genes=250, types=4):
    values = np.random.default_rng(0).gamma(0.35, 1.0, (types, genes)) + 1e-3
    names = [f"gene_{k}" for k in range(genes)]
    return pd.DataFrame(800 * values / values.sum(1, keepdims=True), [f"type_{k}" for k in range(types)], names)


def tissue(spots):
    rng, table = np.random.default_rng(spots), signatures()
    share = rng.dirichlet(np.ones(len(table)), spots)
    counts = rng.poisson(share @ table.to_numpy()).astype(np.float32)
    places = np.column_stack([np.arange(spots) % 20, np.arange(spots) // 20]).astype(float)
    return ad.AnnData(counts, var=pd.DataFrame(index=table.columns), obsm={"spatial": places})


def cells(number):
    # Of one sample: entries a cell are padded to a bucket as well.
    return dbio.datasets.simulate_multiomics(n_cells=MORE_CELLS, n_genes=60, n_peaks=80, n_types=4)[:number].copy()


def fitted(number):
    mdata = cells(number)
    dbio.tl.multiomics_vae(mdata, max_epochs=1)
    return mdata


def bins(cells_of_a_type):
    fragments, places, _ = dbio.datasets.simulate_fragments(n_cells=cells_of_a_type)
    adata = dbio.pp.coverage(fragments, bin_size=200)
    return adata, places.iloc[:6].assign(annotation="peaks", sample=adata.obs_names[0])


def regions(number):
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=MORE_REGIONS)[:, :number].copy()
    adata.var["split"] = np.where(np.arange(number) % 10 == 0, "val", "train")
    dbio.pp.sequences(adata)
    return adata


def patterned(spots):
    return dbio.datasets.simulate_spatial_genes(n_spots=spots, n_genes=60)


def spatial_genes(spots):
    dbio.tl.spatial_genes(spots)
    dbio.tl.spatial_patterns(spots)


def use_model(data):
    model, query = data
    dbio.tl.multiomics_encode(query, model)
    dbio.tl.multiomics_impute(model, modality="atac")
    dbio.tl.multiomics_score(model)


CASES = {
    "deconvolve": (tissue, lambda spots: dbio.tl.deconvolve(spots, signatures()), SPOTS, 3 * SPOTS),
    "spatial_genes": (patterned, spatial_genes, SPOTS, MORE_SPOTS),
    "multiomics_vae": (cells, lambda mdata: dbio.tl.multiomics_vae(mdata, max_epochs=1), CELLS, MORE_CELLS),
    "a_model_of_cells": (lambda number: (fitted(number), cells(number)), use_model, CELLS, MORE_CELLS),
    "contextual": (regions, lambda adata: dbio.tl.contextual(adata, max_epochs=1), REGIONS, MORE_REGIONS),
    "train_peaks": (bins, lambda data: dbio.tl.train_peaks(*data, steps=2), 60, 64),
}


# In order; each further program costs the first call a hundredth of a second, also where a store has it.
FIRST_PROGRAMS = {
    "multiomics_vae": ["_streams", "_drawn", "_divided", "run_epoch", "_encode_block"],
    "contextual": ["_streams", "_normals", "_divided", "run_epoch", "_apply_network"],
}


@pytest.mark.parametrize("name", FIRST_PROGRAMS)
def test_a_first_call_compiles_these_programs(name):
    make, call, few, _ = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = make(few)
        jax.clear_caches()
        with compiled_programs() as programs:
            call(data)
    assert [program.split()[1].removeprefix("jit(").removesuffix(")") for program in programs] == FIRST_PROGRAMS[name]


COMPILED_FOR_PEAKS = """
import json
import numba.core.event as event
import diffbio_sc as dbio

class Compiled(event.Listener):
    functions = []

    def on_start(self, event):
        function = event.data["dispatcher"].py_func
        self.functions.append([function.__module__, function.__qualname__, str(event.data["args"])])

    def on_end(self, event):
        pass

fragments, _, _ = dbio.datasets.simulate_fragments(n_cells=20)
event.register("numba:compile", Compiled())
dbio.tl.call_peaks(fragments)
print(json.dumps(Compiled.functions))
"""


@pytest.mark.slow
def test_a_first_call_of_peaks_compiles_nothing_twice(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_FOR_PEAKS], capture_output=True, text=True, check=True, env=environment
    )
    functions = [tuple(function) for function in json.loads(done.stdout.splitlines()[-1])]
    # Numba's own min serves the function that Python calls, and again those within.
    functions = [function for function in functions if function[0] != "numba.cpython.builtins"]
    assert len(set(functions)) == len(functions)
    own = [name for module, name, _ in functions if module.startswith("diffbio_sc.")]
    # Each for one set of types; a further one costs the first call a fiftieth of a second or more.
    assert len(set(own)) == len(own) <= 38


@pytest.mark.parametrize("name", CASES)
def test_a_little_more_data_compiles_nothing(name):
    make, call, few, more = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(make(few))
        data = make(more)
        with compiled_programs() as programs:
            call(data)
    assert programs == []


@pytest.mark.parametrize("dtype", [None, np.float32, np.int32, np.bool_])
def test_copies_on_the_device_are_those_of_jax_and_compile_nothing(dtype):
    values = np.random.default_rng(0).normal(size=(37, 3)).T
    expected = jnp.asarray(values, dtype)
    with compiled_programs() as programs:
        found = device_copy(values, dtype)
    assert programs == []
    assert (found.dtype, found.weak_type, found.committed) == (expected.dtype, expected.weak_type, expected.committed)
    values += 1.0  # the copy has memory of its own
    np.testing.assert_array_equal(found, expected)

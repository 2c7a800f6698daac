"""Reading contact maps: storage, order, gaps, values."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from diffbio_sc._anndata.contacts import read_contacts


@pytest.fixture
def upper() -> np.ndarray:
    return np.triu(np.random.default_rng(0).poisson(1.0, (50, 50)))


def bins(sizes=(30, 20), resolution=10) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "chrom": np.repeat([f"chr{k + 1}" for k in range(len(sizes))], sizes),
            "start": np.concatenate([np.arange(size) * resolution for size in sizes]),
        }
    )
    table["end"] = table["start"] + resolution
    table.index = table["chrom"] + ":" + table["start"].astype(str)
    return table


def as_map(matrix, axis="obs", **options) -> ad.AnnData:
    table = options.pop("table", bins())
    return ad.AnnData(**{axis: table, f"{axis}p": {"contacts": matrix}, **options})


@pytest.mark.parametrize("axis", ["obs", "var"])
@pytest.mark.parametrize("storage", ["upper", "lower", "symmetric"])
def test_each_storage_gives_the_upper_triangle(upper, storage, axis):
    matrix = {"upper": upper, "lower": upper.T, "symmetric": upper + np.triu(upper, 1).T}[storage]
    contacts = read_contacts(as_map(sp.csr_matrix(matrix), axis))
    assert contacts.storage == storage
    assert contacts.axis.axis == axis
    np.testing.assert_array_equal(contacts.map.counts.toarray(), upper)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_array, np.asarray])
def test_each_dtype_and_container(upper, dtype, kind):
    contacts = read_contacts(as_map(kind(upper.astype(dtype))))
    np.testing.assert_array_equal(contacts.map.counts.toarray(), upper)
    assert contacts.map.counts.dtype == np.int32


@pytest.mark.parametrize("storage", ["upper", "symmetric"])
def test_permuted_and_sliced_bins_keep_their_distances(upper, storage):
    full = upper + np.triu(upper, 1).T
    adata = as_map(sp.csr_matrix(upper if storage == "upper" else full))
    kept = np.random.default_rng(1).permutation(np.delete(np.arange(50), [5, 6, 40]))
    contacts = read_contacts(adata[kept].copy())
    # Chromosomes lie in order of first appearance.
    natural = np.arange(50) if contacts.map.chrom_names[0] == "chr1" else np.roll(np.arange(50), 20)
    expected = full[np.ix_(natural, natural)].copy()
    gone = np.isin(natural, [5, 6, 40])
    expected[gone] = expected[:, gone] = 0
    np.testing.assert_array_equal(contacts.map.counts.toarray(), np.triu(expected))
    np.testing.assert_array_equal(contacts.order < 0, gone)
    values = np.arange(50.0)
    np.testing.assert_array_equal(contacts.to_map(contacts.to_axis(values))[~gone], values[~gone])
    np.testing.assert_array_equal(natural[contacts.place], kept)


def test_counts_beyond_int32_and_duplicates():
    table = bins((2,))
    twice = sp.coo_matrix(([2**31 - 1, 5, 4], ([0, 0, 1], [1, 1, 1])), shape=(2, 2), dtype=np.int64)
    contacts = read_contacts(as_map(twice.tocsr(), table=table))
    assert contacts.map.counts[0, 1] == 2**31 + 4
    assert contacts.map.cis("chr1").counts[1, 1] == 4


def test_explicit_zeros_are_dropped(upper):
    matrix = sp.csr_matrix(upper)
    matrix.data[:10] = 0
    assert read_contacts(as_map(matrix)).map.counts.nnz == matrix.nnz - 10


def test_short_last_bin_is_allowed_variable_bins_are_not(upper):
    table = bins()
    table.iloc[29, 2] -= 3
    assert read_contacts(as_map(sp.csr_matrix(upper), table=table)).map.resolution == 10
    table.iloc[10, 2] -= 3
    with pytest.raises(ValueError, match="bins of one width.*chr1:100"):
        read_contacts(as_map(sp.csr_matrix(upper), table=table))


def test_refusals_name_the_key_and_the_remedy(upper):
    with pytest.raises(KeyError, match=r"neither adata.obsp nor adata.varp has 'contacts'.*read_cool"):
        read_contacts(ad.AnnData(obs=bins()))
    with pytest.raises(ValueError, match=r"adata.obsp\['contacts'\] must be symmetric"):
        read_contacts(as_map(sp.csr_matrix(upper + 2 * np.triu(upper, 1).T)))
    for bad, message in ((-1.0, "must not be negative"), (np.nan, "must be finite"), (0.5, "raw counts.*fractional")):
        matrix = sp.csr_matrix(upper.astype(float))
        matrix.data[3] = bad
        with pytest.raises(ValueError, match=message):
            read_contacts(as_map(matrix))
    with pytest.warns(UserWarning, match="p-values"):
        read_contacts(as_map(matrix), allow_fractional=True)
    with pytest.raises(KeyError, match=r"\['chrom', 'start', 'end'\]"):
        read_contacts(as_map(sp.csr_matrix(upper), table=bins()[["chrom"]]))
    with pytest.raises(TypeError, match="AnnData"):
        read_contacts(upper)
    both = ad.AnnData(
        obs=bins(), var=bins(), obsp={"contacts": sp.csr_matrix(upper)}, varp={"contacts": sp.csr_matrix(upper)}
    )
    with pytest.raises(ValueError, match="axis='obs' or axis='var'"):
        read_contacts(both)
    assert read_contacts(both, axis="var").axis.axis == "var"


def test_regions_are_named_by_arm(upper):
    contacts = read_contacts(as_map(sp.csr_matrix(upper))).map
    assert contacts.regions() == [("chr1", 0, 30), ("chr2", 30, 50)]
    assert contacts.regions(np.array([12])) == [("chr1_p", 0, 12), ("chr1_q", 12, 30), ("chr2", 30, 50)]
    np.testing.assert_array_equal(contacts.cis("chr2").counts.toarray(), upper[30:, 30:])

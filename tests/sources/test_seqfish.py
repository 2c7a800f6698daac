"""The seqFISH source on a file in the layout of squidpy's, made here."""

from __future__ import annotations

import hashlib
import http.server
import threading

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from diffbio_sc.sources import SeqFISHConfig, SeqFISHSource, seqfish
from diffbio_sc.sources.download import download
from diffbio_sc.sources.provenance import validate_artifact_metadata

LABEL = "celltype_mapped_refined"
pytestmark = pytest.mark.filterwarnings("ignore:h5ad cannot store")  # the layout has '/' in a type's name


def embryo(cells=600, genes=30, types=4, seed=0):
    """Cells in bands, one a type, with the fields of squidpy's file; raw counts in ``.X``."""
    rng = np.random.default_rng(seed)
    code = rng.integers(0, types, cells)
    place = np.stack([(code + rng.uniform(-0.7, 1.7, cells)) / types, rng.uniform(0, 2, cells)], 1)
    mean = rng.gamma(0.5, 4.0, (types, genes)) + 0.2
    names = [f"Type/{index}" if index == 0 else f"Type {index}" for index in range(types)]
    adata = anndata.AnnData(
        sp.csr_matrix(rng.poisson(mean[code]).astype(np.float32)),
        obs=pd.DataFrame(
            {"Area": rng.uniform(1, 2, cells), LABEL: pd.Categorical([names[one] for one in code])},
            index=[f"embryo1_{index}" for index in range(cells)],
        ),
        var=pd.DataFrame(index=[f"Gene{index}" for index in range(genes)]),
    )
    adata.obsm["spatial"] = place
    adata.obsm["X_umap"] = place
    adata.uns[f"{LABEL}_colors"] = np.array(["#000000"] * types)
    return adata


def logged(adata, base):
    values = adata.copy()
    size = np.random.default_rng(3).uniform(0.5, 2.0, adata.n_obs)
    values.X = sp.csr_matrix(np.log1p(adata.X.toarray() / size[:, None]) / np.log(base))
    return values


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("seqfish") / "seqfish.h5ad"
    embryo().write_h5ad(path)
    return path


def test_M2_both_modalities_are_disjoint_cells_with_the_true_composition(file):
    cells = anndata.read_h5ad(file)
    source = SeqFISHSource(file)
    mdata = source.load()
    reference, spots = mdata["rna"], mdata["spatial"]
    rest = cells[~cells.obs_names.isin(reference.obs_names)]
    assert reference.n_obs == sum(round(0.5 * n) for n in cells.obs[LABEL].value_counts())
    np.testing.assert_array_equal(reference.X.toarray(), cells[reference.obs_names].X.toarray())
    assert spots.obs["n_cells"].sum() == rest.n_obs
    np.testing.assert_array_equal(spots.X.toarray().sum(0), rest.X.toarray().sum(0))
    np.testing.assert_allclose(spots.obsm["truth"].sum(1), 1.0, rtol=1e-12)
    assert 6.0 < spots.obs["n_cells"].mean() <= 8.5
    # Brute force: the cells of each square, one by one.
    steps = np.diff(np.unique(spots.obsm["spatial"][:, 0]))
    width = steps[steps > 1e-6].min()
    names = source.cell_types
    for row in range(0, spots.n_obs, 7):
        centre = spots.obsm["spatial"][row]
        inside = (np.abs(rest.obsm["spatial"] - centre) <= width / 2 + 1e-12).all(1)
        np.testing.assert_array_equal(spots.X[row].toarray()[0], rest.X[inside].toarray().sum(0))
        share = rest.obs[LABEL][inside].value_counts(normalize=True)
        np.testing.assert_allclose(spots.obsm["truth"].iloc[row], [share.get(name, 0.0) for name in names])


def test_M2_provenance_contract_and_artifact_metadata_are_canonical(file, tmp_path):
    source = SeqFISHSource(file)
    mdata = source.load()
    mdata.write(tmp_path / "source.h5mu")
    stored = mudata.read_h5mu(tmp_path / "source.h5mu").uns["source"]
    assert list(stored["provenance"]["modalities"]) == ["rna", "spatial"]
    assert stored["provenance"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert not stored["provenance"]["promotion_eligible"]
    assert stored["modality_contract"]["primary_modality"] == "rna"
    assert stored["modality_contract"]["spatial_key"] == "spatial"
    assert stored["modality_contract"]["label_key"] == LABEL
    for name in ("rna", "spatial"):
        assert mdata[name].uns["source"]["provenance"]["modalities"] == [name]
    record = source.artifact_metadata()
    validate_artifact_metadata(record)
    assert record["artifact_id"] == "diffbio.spatial_deconvolution.proportions"
    assert record["artifact_type"] == "operator_output"
    assert record["modalities"] == ["rna", "spatial"]
    assert record["embedding_source"] == "in_process_operator"


def test_M2_only_the_published_file_may_be_promoted(file, monkeypatch):
    monkeypatch.setattr(seqfish, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    source = SeqFISHSource(file)
    assert source.provenance.dataset_name == "lohoff_2022_mouse_organogenesis_seqfish"
    assert source.provenance.promotion_eligible
    assert source.artifact_metadata()["promotion_eligible"]
    assert not SeqFISHSource(anndata.read_h5ad(file)).provenance.promotion_eligible


def test_M2_operator_inputs_are_the_arrays_of_the_objects_and_are_solved(file):
    from flax import nnx

    from diffbio_sc.operators.multiomics import SpatialDeconvolution, SpatialDeconvolutionConfig

    source = SeqFISHSource(file)
    inputs, spots, reference = source.operator_inputs(), source.spots(), source.reference()
    np.testing.assert_array_equal(inputs["spatial_expression"], spots.X.toarray())
    for row, name in enumerate(source.cell_types):
        mean = reference.X[(reference.obs[LABEL] == name).to_numpy()].toarray().mean(0)
        np.testing.assert_allclose(inputs["reference_profiles"][row], mean, rtol=1e-5)
    config = SpatialDeconvolutionConfig(n_cell_types=4, n_genes=30, hidden_dim=0)
    operator = SpatialDeconvolution(config, rngs=nnx.Rngs(0))
    found = np.asarray(operator.apply(inputs)[0]["proportions"])
    assert np.corrcoef(found.ravel(), inputs["truth"].ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("base", "name"), [(np.e, "expm1"), (2.0, "exp2m1")])
def test_logs_of_counts_are_taken_back_exactly(base, name):
    counts = embryo()
    dense = counts.X.toarray()
    assert not (dense == 1).any(1).all()  # the smallest value of a cell is not always a count of 1
    assert all(np.gcd.reduce(row[row > 0].astype(int)) == 1 for row in dense)
    source = SeqFISHSource(logged(counts, base))
    np.testing.assert_array_equal(source.cells.X.toarray(), counts[source.cells.obs_names].X.toarray())
    assert name in source.modality_contract["counts"]


def test_other_fractional_values_are_refused():
    values = embryo()
    values.X = sp.csr_matrix(values.X.toarray() * np.random.default_rng(0).uniform(0.5, 1.5, values.shape))
    with pytest.raises(ValueError, match=r"data\.X must hold raw counts.*layer"):
        SeqFISHSource(values)
    values.layers["counts"] = embryo().X
    assert SeqFISHSource(values, SeqFISHConfig(layer="counts")).modality_contract["count_key"] == "counts"


def test_labels_that_are_no_cell_types_and_rare_ones_are_left_out():
    cells = embryo()
    labels = cells.obs[LABEL].astype(str).to_numpy()
    labels[:20], labels[20], labels[21] = "Low quality", "Once", np.nan
    cells.obs[LABEL] = labels
    cells.obs.loc[cells.obs_names[21], LABEL] = np.nan
    with pytest.warns(UserWarning, match=r"left out: \['Once'\]"):
        source = SeqFISHSource(cells)
    assert len(source) == 578
    assert source.cell_types == ["Type 1", "Type 2", "Type 3", "Type/0"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda a: a.obs.drop(columns=LABEL, inplace=True), KeyError, f"no column '{LABEL}'; columns"),
        (lambda a: a.obsm.pop("spatial"), KeyError, "no 'spatial'; keys"),
        (lambda a: a.obsm["spatial"].__setitem__((3, 0), np.nan), ValueError, "must be finite.*embryo1_3"),
        (lambda a: setattr(a, "obs_names", ["x"] * a.n_obs), ValueError, "data.obs_names must be unique"),
        (lambda a: setattr(a, "X", a.X * 0), ValueError, "all values are 0"),
        (lambda a: setattr(a, "X", a.X * -1), ValueError, "negative"),
        (lambda a: a.obs.__setitem__(LABEL, "one"), ValueError, "at least two cell types"),
    ],
)
def test_bad_objects_are_refused_before_anything_is_yielded(change, error, match):
    cells = embryo()
    change(cells)
    with pytest.raises(error, match=match):
        SeqFISHSource(cells)


def test_bad_files_say_what_is_wrong(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"SeqFISHSource\.download\(\)"):
        SeqFISHSource(tmp_path / "none.h5ad")
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="ends early"):
        SeqFISHSource(cut)
    cut.write_bytes(b"text" * 1000)
    with pytest.raises(ValueError, match="is damaged, or no h5ad file"):
        SeqFISHSource(cut)


# Download ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(file):
    """A server that breaks the connection after ``server.sends`` bytes."""
    content = file.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: self.server.sends])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.sends, running.asked = len(content), 0
        running.digest = hashlib.sha256(content).hexdigest()
        running.url = f"http://127.0.0.1:{running.server_address[1]}/seqfish.h5ad"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_download_happens_once_and_is_read(server, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for _ in range(2):
        source = SeqFISHSource.download(folder=tmp_path / "cache", url=server.url, sha256=server.digest)
    assert server.asked == 1
    assert source.provenance.sha256 == server.digest
    assert source.provenance.source_path == str(tmp_path / "cache" / "seqfish.h5ad")


def test_an_interrupted_download_leaves_nothing_behind(server, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    options = {"file_name": "seqfish.h5ad", "folder": tmp_path / "deep" / "cache"}
    server.sends = 3000
    with pytest.raises(Exception, match="3000"):  # the error is that of requests
        download(server.url, server.digest, **options)
    assert list(tmp_path.iterdir()) == []

    def interrupted(url, output_file, pooch):
        with open(output_file, "wb") as target:
            target.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url, server.digest, downloader=interrupted, **options)
    assert list(tmp_path.iterdir()) == []
    server.sends = 10**9
    with pytest.raises(ValueError, match="hash"):
        download(server.url, "0" * 64, **options)
    assert list(tmp_path.iterdir()) == []


def test_another_file_in_the_cache_is_not_taken_for_it(server, tmp_path):
    (tmp_path / "seqfish.h5ad").write_bytes(b"other")
    with pytest.raises(ValueError, match="not the file expected.*Delete it"):
        download(server.url, server.digest, file_name="seqfish.h5ad", folder=tmp_path)
    assert server.asked == 0

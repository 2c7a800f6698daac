"""The command line: each command gives what its function gives, and ends cleanly whatever happens."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio
from diffbio_sc._cli import main
from diffbio_sc._cli.commands import COMMANDS
from diffbio_sc._cli.shell_types import parameter_texts, shell_options, shell_type


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tissue")
    spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    spots.write_h5ad(folder / "spots.h5ad")
    reference.write_h5ad(folder / "cells.h5ad")
    return folder, spots, reference


@pytest.fixture
def fragments(tmp_path):
    """Two hundred fragments about each of two places, from barcodes of two groups, on a thin background."""
    rng = np.random.default_rng(0)
    start = np.sort(
        np.concatenate([rng.integers(0, 400_000, 400), rng.normal(100_000, 60, 200), rng.normal(300_000, 60, 200)])
    )
    start = start.astype(int)
    table = pd.DataFrame({"chrom": "chr1", "start": start, "end": start + 150})
    table["barcode"] = np.array([f"cell{index}-1" for index in range(8)])[rng.integers(0, 8, len(table))]
    path = tmp_path / "fragments.tsv"
    table.to_csv(path, sep="\t", header=False, index=False)
    labels = tmp_path / "labels.tsv"
    groups = pd.DataFrame({"barcode": [f"cell{index}-1" for index in range(8)], "label": ["B cell"] * 4 + ["T/NK"] * 4})
    groups.to_csv(labels, sep="\t", index=False)
    return path, labels


def test_demo_writes_figure_and_result(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path), "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    error = float(printed.split("root mean square error")[1].split()[0])
    assert error < 0.12  # equal proportions everywhere: 0.25
    assert (tmp_path / "diffbio_sc_demo.png").stat().st_size > 20_000
    result = ad.read_h5ad(tmp_path / "diffbio_sc_demo.h5ad")
    assert result.obsm["deconvolution"].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)


def test_no_command_shows_what_there_is(capsys):
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "demo" in printed.err
    assert "--help" in printed.err


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.face], ids=lambda command: command.name)
def test_options_are_those_of_the_function(command, capsys):
    function = command.function()
    texts = parameter_texts(function)
    signature = inspect.signature(function).parameters
    own = {option.name for option in command.options}
    for parameter in shell_options(function):
        assert parameter.default == signature[parameter.name].default
        assert texts[parameter.name], parameter.name
    assert main([command.name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert command.examples.splitlines()[0].split(" -o")[0][:40] in printed
    for parameter in shell_options(function, without=(*command.without, *own)):
        assert f"--{parameter.name.replace('_', '-')}" in printed


def test_types_that_a_shell_can_say():
    from pathlib import Path
    from typing import Literal

    assert shell_type("int | np.random.Generator", {}) is int
    assert shell_type("Sequence[float] | None", {}) == list[float] | None
    assert shell_type("Literal['a', 'b'] | None", {}) == Literal["a", "b"] | None
    assert shell_type("int | Literal['auto'] | None", {}) == int | Literal["auto"] | None
    assert shell_type("tuple[int, int] | None", {}) == tuple[int, int] | None
    assert shell_type("Mapping[str, str] | pd.Series", {}) == dict[str, str]
    assert shell_type("Choice", {"Choice": Literal["x"] | None}) == Literal["x"] | None
    assert shell_type("os.PathLike[str] | AnnData", {}) is Path
    assert shell_type("pd.DataFrame | AnnData | None", {}) is None


def test_deconvolve_equals_the_function(tissue, tmp_path, capsys):
    folder, spots, reference = tissue
    output = tmp_path / "out.h5ad"
    arguments = [str(folder / "spots.h5ad"), str(folder / "cells.h5ad"), "--cell-type-key", "cell_type"]
    arguments += ["--no-refine", "--n-top-genes", "200", "-o", str(output), "--table", "-"]
    assert main(["deconvolve", *arguments]) == 0
    expected = dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type", refine=False, n_top_genes=200, copy=True)
    result = ad.read_h5ad(output)
    np.testing.assert_array_equal(result.obsm["deconvolution"], expected.obsm["deconvolution"])
    from io import StringIO

    table = pd.read_csv(StringIO(capsys.readouterr().out), sep="\t")
    np.testing.assert_allclose(table["proportion"], dbio.get.deconvolution(expected)["proportion"], rtol=1e-6)
    assert main(["deconvolve", *arguments]) == 1
    assert "--force" in capsys.readouterr().err


def test_spatial_genes_equals_the_function(tissue, tmp_path):
    folder, spots, _ = tissue
    zarr = tmp_path / "out.zarr"
    for _ in range(2):  # the second run replaces the folder
        arguments = [str(folder / "spots.h5ad"), "-o", str(zarr), "--table", str(tmp_path / "genes.csv"), "--force"]
        assert main(["spatial-genes", *arguments, "--no-variance", "--lengthscales", "1", "3"]) == 0
    expected = dbio.tl.spatial_genes(spots, variance=False, lengthscales=[1.0, 3.0], copy=True)
    result = ad.read_zarr(zarr)
    pd.testing.assert_frame_equal(result.var, expected.var, check_dtype=False)
    assert len(pd.read_csv(tmp_path / "genes.csv")) == len(dbio.get.spatial_genes(expected))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genes.csv", "out.zarr"]


def test_multiomics_vae_equals_the_function(tmp_path):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 80)
    rna = ad.AnnData(rng.poisson(np.where(group[:, None], 3.0, 1.0) * np.ones(20)).astype(np.float32))
    protein = ad.AnnData(rng.poisson(np.where(group[:, None], 20.0, 40.0) * np.ones(6)).astype(np.float32))
    mdata = md.MuData({"rna": rna, "protein": protein})
    mdata.write_h5mu(tmp_path / "cells.h5mu")
    arguments = [str(tmp_path / "cells.h5mu"), "--max-epochs", "0", "--n-latent", "3"]
    arguments += ["-o", str(tmp_path / "out.h5mu"), "--table", str(tmp_path / "embedding.tsv")]
    assert main(["multiomics-vae", *arguments, "-q"]) == 0
    dbio.tl.multiomics_vae(mdata, max_epochs=0, n_latent=3)
    embedding = mdata.obsm["X_multiomics_vae"]
    np.testing.assert_array_equal(md.read_h5mu(tmp_path / "out.h5mu").obsm["X_multiomics_vae"], embedding)
    table = pd.read_csv(tmp_path / "embedding.tsv", sep="\t")
    np.testing.assert_allclose(table.drop(columns="cell"), embedding, rtol=1e-5)


def test_peaks_equal_the_function(fragments, tmp_path, capsys):
    path, labels = fragments
    expected = dbio.tl.call_peaks(path)
    assert len(expected) == 2
    assert main(["peaks", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:3] for line in lines] == expected[["chrom", "start", "end"]].astype(str).values.tolist()
    assert main(["peaks", str(path), "-o", str(tmp_path / "p.bed"), "--mode", "narrow", "--duplicates", "auto"]) == 0
    assert len((tmp_path / "p.bed").read_text().splitlines()) == 2
    folder = tmp_path / "groups"
    told = capsys.readouterr().err
    assert "neither a control nor a blacklist" in told
    assert "warning" not in told
    assert main(["peaks", str(path), "--groupby", str(labels), "-o", str(folder)]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["B_cell.narrowPeak", "T_NK.narrowPeak"]
    by_label = dbio.tl.call_peaks(path, groupby=pd.read_csv(labels, sep="\t", index_col=0)["label"])
    assert (
        dbio.io.read_narrowpeak(folder / "B_cell.narrowPeak")["start"].tolist() == by_label["B cell"]["start"].tolist()
    )
    assert main(["peaks", str(path), "--groupby", str(labels), "-o", str(folder)]) == 1
    assert main(["peaks", f"a={path}", f"b={path}", "--replicate", "-o", str(tmp_path / "r.tsv")]) == 0
    pooled = dbio.tl.call_peaks({"a": path, "b": path}, replicate=True)
    written = pd.read_csv(tmp_path / "r.tsv", sep="\t")
    assert written[["start", "n_replicates"]].values.tolist() == pooled[["start", "n_replicates"]].values.tolist()
    # Cells of two samples are never the same, and each fragment counts twice: weak peaks are of the pool alone.
    assert pooled.loc[pooled["n_replicates"] > 0, "n_replicates"].tolist() == [2, 2]


def test_coverage_and_conversion_equal_the_functions(fragments, tmp_path, capsys):
    path, labels = fragments
    out = tmp_path / "bins.h5ad"
    assert main(["coverage", str(path), "--bin-size", "5000", "--groupby", str(labels), "-o", str(out)]) == 0
    by_label = pd.read_csv(labels, sep="\t", index_col=0)["label"]
    expected = dbio.pp.coverage(path, bin_size=5000, groupby=by_label)
    np.testing.assert_array_equal(ad.read_h5ad(out).X.toarray(), expected.X.toarray())
    assert main(["coverage", str(path), "-o", str(tmp_path / "bins.bw")]) == 0
    signal = dbio.io.read_bigwig(tmp_path / "bins.bw")
    assert list(signal.chromosomes) == ["chr1"] or "chr1" in str(signal)
    assert main(["convert", str(out), str(tmp_path / "bins.zarr")]) == 0
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "bins.zarr").X.toarray(), expected.X.toarray())
    assert main(["convert", str(out), str(tmp_path / "bins.bam")]) == 1
    assert "cannot convert" in capsys.readouterr().err


def test_states_equal_the_function(tmp_path):
    marks = dbio.datasets.simulate_chromatin_states(n_bins=1500, n_states=3)
    marks.write_h5ad(tmp_path / "marks.h5ad")
    arguments = [str(tmp_path / "marks.h5ad"), "--n-states", "3", "--effort", "fast", "-o", str(tmp_path / "out.h5ad")]
    assert main(["states", *arguments, "--segments", str(tmp_path / "segments.bed")]) == 0
    dbio.tl.chromatin_states(marks, n_states=3, effort="fast")
    result = ad.read_h5ad(tmp_path / "out.h5ad")
    table = result.var if "chromatin_state" in result.var else result.obs
    expected = marks.var if "chromatin_state" in marks.var else marks.obs
    assert table["chromatin_state"].astype(str).tolist() == expected["chromatin_state"].astype(str).tolist()
    segments = dbio.io.read_segments(tmp_path / "segments.bed")
    assert len(segments) == len(dbio.get.chromatin_states(marks))


def test_contacts_equal_the_function(tmp_path):
    contacts = dbio.datasets.simulate_contacts(n_bins=200, rng=0)
    contacts.write_h5ad(tmp_path / "map.h5ad")
    arguments = [str(tmp_path / "map.h5ad"), "-o", str(tmp_path / "out.h5ad"), "--loops", str(tmp_path / "loops.tsv")]
    assert main(["contacts", *arguments, "--fdr", "0.1"]) == 0
    dbio.tl.contacts(contacts, fdr=0.1)
    result = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(result.obs["contact_weight"], contacts.obs["contact_weight"])
    assert len(pd.read_csv(tmp_path / "loops.tsv", sep="\t")) == len(dbio.get.loops(contacts))


def test_contextual_equals_the_function(tmp_path):
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=300)
    dbio.pp.sequences(adata)
    adata.write_h5ad(tmp_path / "regions.h5ad")
    arguments = [str(tmp_path / "regions.h5ad"), "-o", str(tmp_path / "out.h5ad"), "--no-refine", "--no-average"]
    assert main(["contextual", *arguments, "--table", str(tmp_path / "table.tsv")]) == 0
    dbio.tl.contextual(adata, refine=False, average=False)
    result = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(result.layers["contextual_prob"], adata.layers["contextual_prob"], atol=1e-6)
    assert len(pd.read_csv(tmp_path / "table.tsv", sep="\t")) == len(dbio.get.contextual(adata))


def test_suites_have_their_own_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["suite", "--help"])
    assert stop.value.code == 0
    assert "--baseline" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "suite" in capsys.readouterr().out


def test_info_names_versions_and_devices(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert dbio.__version__ in printed
    assert "cpu:0" in printed


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["peaks", "missing.bam"], 1, "there is no file 'missing.bam'"),
        (["deconvolve", "a.h5ad", "b.h5ad", "-o", "out.txt"], 1, "must end with .h5ad or .zarr"),
        (["deconvolve", "a.h5ad", "b.h5ad", "-o", "nowhere/out.h5ad"], 1, "no folder"),
        (["spatial-genes", "a.h5ad", "-o", "out.h5ad", "--alpha", "x"], 2, "--alpha"),
        (["spatial-genes", "a.h5ad", "-o", "out.h5ad", "--fdr", "holm"], 2, "--fdr"),
        (
            ["spatial-genes", "a.h5ad", "-o", "out.h5ad", "--alpha", "2"],
            2,
            "--alpha must be a number above 0 and below 1",
        ),
        (["spatial-genes", "a.h5ad", "-o", "out.h5ad", "--key-added", "a/b"], 2, "--key-added must not contain '/'"),
        (["spatial-genes", "a.h5ad", "-o", "out.h5ad", "--rng=-1"], 2, "--rng must be a whole number of at least 0"),
        (["deconvolve", "a.h5ad", "b.h5ad", "-o", "o.h5ad", "--n-top-genes", "100.7"], 2, "100.7 is no whole number"),
        (["deconvolve", "a.h5ad", "b.h5ad", "-o", "o.h5ad", "--smoothing", "nan"], 2, "--smoothing must be a number"),
        (["deconvolve", "a.h5ad", "b.h5ad", "-o", "o.h5ad", "--genes", "g", "g"], 2, "--genes must be unique"),
        (["peaks", "a.bed", "--qvalue", "0"], 2, "qvalue must lie between 0 and 1, found 0.0"),
        (
            ["states", "a.h5ad", "-o", "o.h5ad", "--n-states", "0"],
            2,
            "--n-states must be a whole number from 1 to 1000",
        ),
        (["contacts", "a.cool", "-o", "o.h5ad", "--fdr", "2"], 2, "--fdr must be a number above 0 and at most 1"),
        (["multiomics-vae", "a.h5mu", "-o", "o.h5mu", "--max-epochs=-2"], 2, "--max-epochs must be a whole number"),
        (["spatial-genes", "a.h5ad"], 2, "--output"),
        (["spatial-gene"], 2, "spatial-gene"),
    ],
)
def test_errors_are_one_line_and_a_status(arguments, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_and_a_broken_pipe_end_cleanly(fragments, tmp_path):
    path, _ = fragments
    command = [sys.executable, "-m", "diffbio_sc", "peaks", str(path), "-o", "-"]
    for unbuffered in ("", "1"):  # the error comes at the last flush, or at the first line
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        with open("/dev/full", "w") as full:
            run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
        assert run.returncode == 1
        assert "No space left" in run.stderr
        assert "Exception ignored" not in run.stderr
        assert "Traceback" not in run.stderr
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer.stdout.close()  # the reader is gone before the first line
    assert "rror" not in writer.stderr.read()  # neither a traceback nor Python's complaint at its end
    assert writer.wait() == 141


def test_a_disk_without_room_for_the_result_is_told_before_it_is_written(tissue, tmp_path, monkeypatch, capsys):
    folder, spots, _ = tissue
    usage = shutil.disk_usage(tmp_path)
    arguments = ["convert", str(folder / "spots.h5ad"), str(tmp_path / "copy.h5ad")]
    matrix = spots.X.data.nbytes + spots.X.indices.nbytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=matrix - 1))
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("diffbio-sc convert: error: No space left on device")
    assert "copy.h5ad" in printed
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main(arguments) == 0
    assert ad.read_h5ad(tmp_path / "copy.h5ad").shape == spots.shape


def test_a_shell_completes_commands_and_options(tmp_path):
    home = {**os.environ, "HOME": str(tmp_path)}
    install = [sys.executable, "-m", "diffbio_sc", "--install-completion", "--shell", "bash"]
    subprocess.run(install, check=True, capture_output=True, env=home)
    (script,) = tmp_path.rglob("completions/diffbio-sc")

    def completed(*words):
        line = f'source "{script}"; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _diffbio_sc; '
        run = ["bash", "-c", line + 'printf "%s\\n" "${COMPREPLY[@]}"']
        return subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()

    assert completed("diffbio-sc", "spat") == ["spatial-genes"]
    assert completed("diffbio-sc", "states", "--n-st") == ["--n-states"]
    assert "narrow" in completed("diffbio-sc", "peaks", "--mode", "na")

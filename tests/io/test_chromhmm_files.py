"""ChromHMM's files: models, binarised marks, segments."""

from __future__ import annotations

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio
from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel

MODEL = [
    "2\t3\tE\t-12.5\t200",
    "probinit\t1\t0.0",
    "probinit\t2\t1.0",
    "transitionprobs\t1\t1\t1.0",
    "transitionprobs\t1\t2\t0.0",
    "transitionprobs\t2\t1\t1.5E-4",
    "transitionprobs\t2\t2\t0.99985",
    *(
        f"emissionprobs\t{state}\t{mark}\t{name}\t{present}\t{value if present else 1 - value}"
        for state, values in ((1, (0.25, 0.0, 1.0)), (2, (0.5, 0.125, 0.75)))
        for mark, (name, value) in enumerate(zip(("b", "a", "c"), values, strict=True))
        for present in (0, 1)
    ),
]


def write(path, lines, end="\n", last=True):
    text = end.join(lines) + (end if last else "")
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["m.txt", "m.txt.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_model_is_read_number_by_number(tmp_path, name, end, last):
    model = dbio.io.read_chromhmm_model(write(tmp_path / name, MODEL, end, last))
    assert model.marks == ("b", "a", "c")
    assert model.states == ("E1", "E2")
    assert model.initial.tolist() == [0.0, 1.0]
    assert model.transition.tolist() == [[1.0, 0.0], [1.5e-4, 0.99985]]
    assert model.emission.tolist() == [[0.25, 0.0, 1.0], [0.5, 0.125, 0.75]]
    assert (model.log_likelihood, model.n_iterations, model.state_order) == (-12.5, 200, "E")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("2\t3\tT\t-1.0\t7", ("T", -1.0, 7)),
        ("2\t3\tF", ("F", None, None)),
        ("2\t3\t-4.0\t9", ("E", -4.0, 9)),
        ("2\t3", ("E", None, None)),
        ("2\t3\tU\tNaN\t0", ("U", None, 0)),
    ],
)
def test_variants_of_the_first_line(tmp_path, header, expected):
    model = dbio.io.read_chromhmm_model(write(tmp_path / "m.txt", [header, *MODEL[1:]]))
    assert (model.state_order, model.log_likelihood, model.n_iterations) == expected


def test_what_is_nearly_certain_does_not_become_certain(tmp_path):
    lines = [line.replace("\tc\t0\t0.0", "\tc\t0\t1.0E-30") for line in MODEL]
    assert 0 < 1 - dbio.io.read_chromhmm_model(write(tmp_path / "m.txt", lines)).emission[0, 2] < 1e-15
    assert dbio.io.read_chromhmm_model(write(tmp_path / "n.txt", MODEL)).emission[0, 2] == 1.0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: ["state (Emission order)\tb\ta\tc", *lines[1:]], "looks like a file of emissions"),
        (lambda lines: ["0\t3\tE", *lines[1:]], "at least one state"),
        (lambda lines: ["2\t3\tE\tmuch", *lines[1:]], "expected the first line of a model"),
        (lambda lines: lines[:-1], "lacks 1 of 12 lines 'emissionprobs'"),
        (lambda lines: ["3\t3\tE", *lines[1:]], "lacks 1 of 3 lines 'probinit'"),
        (lambda lines: ["2\t2\tE", *lines[1:]], "line 12 must hold a number from 0 to 1 in field 3"),
        (lambda lines: [*lines, lines[1]], "line 20 gives a parameter a second time"),
        (lambda lines: [*lines[:1], "probinit\t1\t0.5", *lines[2:]], "initial must hold probabilities that sum to 1"),
        (lambda lines: [*lines[:3], "transitionprobs\t1\t1\t1.7", *lines[4:]], "line 4 must end with a probability"),
        (lambda lines: [*lines[:3], "transitionprobs\t1\t1\tx", *lines[4:]], "line 4 must end with a probability"),
        (lambda lines: [*lines, "emission\t1"], "begins with 'emission'"),
        (lambda lines: [*lines[:-1], lines[-1].replace("\tc\t", "\td\t")], "calls mark 2 'd', a line before it 'c'"),
        (lambda lines: [*lines[:-1], lines[-1].replace("0.75", "0.5")], "state 2 and mark 'c' must sum to 1"),
        (
            lambda lines: [line.replace("\ta\t", "\tb\t") for line in lines],
            r"marks must be unique, found twice: \['b'\]",
        ),
    ],
)
def test_bad_models_are_refused_by_line(tmp_path, change, problem):
    with pytest.raises(ValueError, match=problem):
        dbio.io.read_chromhmm_model(write(tmp_path / "m.txt", change(list(MODEL))))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file '.*none.txt'"):
        dbio.io.read_chromhmm_model(tmp_path / "none.txt")
    (tmp_path / "x").write_bytes(b"\x00\x01" * 10)
    with pytest.raises(ValueError, match="no text file"):
        dbio.io.read_chromhmm_model(tmp_path / "x")


@pytest.mark.parametrize("name", ["m.txt", "m.txt.gz"])
def test_a_model_is_written_bit_for_bit(tmp_path, name):
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(4), 4)
    transition[0] = [1, 0, 0, 0]
    emission = rng.random((4, 3))
    emission[1] = [0, 1, 1e-300]
    model = ChromatinStateModel(rng.dirichlet(np.ones(4)), transition, emission, ("x", "y", "z"), log_likelihood=-1.25)
    dbio.io.write_chromhmm_model(model, tmp_path / name)
    again = dbio.io.read_chromhmm_model(tmp_path / name)
    for field in ("initial", "transition", "emission"):
        np.testing.assert_array_equal(getattr(again, field), getattr(model, field))
    assert (again.marks, again.log_likelihood) == (model.marks, -1.25)
    first = (tmp_path / name).read_bytes()
    dbio.io.write_chromhmm_model(model, tmp_path / name)
    assert (tmp_path / name).read_bytes() == first


def test_models_that_the_format_cannot_hold(tmp_path):
    model = ChromatinStateModel([1.0], [[1.0]], [[3.0]], ("a",), emission_kind="poisson")
    with pytest.raises(ValueError, match="Bernoulli emissions alone, found 'poisson'"):
        dbio.io.write_chromhmm_model(model, tmp_path / "m.txt")
    with pytest.raises(ValueError, match="tabs or line ends"):
        dbio.io.write_chromhmm_model(ChromatinStateModel([1.0], [[1.0]], [[0.3]], ("a\tb",)), tmp_path / "m.txt")
    with pytest.raises(TypeError, match="found AnnData.*get.chromatin_state_model"):
        dbio.io.write_chromhmm_model(ad.AnnData(np.ones((1, 1))), tmp_path / "m.txt")
    assert not (tmp_path / "m.txt").exists()


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "states", "marks", "zeros", "log_likelihood"),
    [
        ("chromhmm_sample_hg18_10", 10, 10, 18, -742608.4889122696),
        ("chromhmm_sample_hg18_15", 15, 10, 73, -715244.2558461716),
        ("roadmap_model_15_coreMarks", 15, 5, 53, -2.9418047000253594e8),
        ("roadmap_model_18_core_K27ac", 18, 6, 75, -2.2192854617465788e8),
        ("scchromhmm_pbmc_12", 12, 6, 52, -4.713222968403458e7),
    ],
)
def test_shipped_models(data_folder, tmp_path, name, states, marks, zeros, log_likelihood):
    path = data_folder / "chromatin_states" / "models" / f"{name}.txt"
    model = dbio.io.read_chromhmm_model(path)
    assert (model.n_states, model.n_marks, int((model.transition == 0).sum())) == (states, marks, zeros)
    assert model.log_likelihood == log_likelihood
    # The numbers of the lines themselves, by another reader.
    table = pd.read_csv(path, sep="\t", skiprows=1, header=None, names=range(6), float_precision="round_trip")
    written = table[(table[0] == "emissionprobs") & (table[4] == 1)][5].to_numpy(float)
    np.testing.assert_array_equal(model.emission.ravel(), written)
    dbio.io.write_chromhmm_model(model, tmp_path / "m.txt")
    again = dbio.io.read_chromhmm_model(tmp_path / "m.txt")
    for field in ("initial", "transition", "emission"):
        np.testing.assert_array_equal(getattr(again, field), getattr(model, field))


# Binary files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["K562_chr1_binary.txt", "K562_chr1_binary.txt.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_binary_file_is_read_value_by_value(tmp_path, name, end, last):
    lines = ["K562\tchr1", "a\tb\tc", "0\t1\t0", "1\t1\t0", "0\t0\t0"]
    found = dbio.io.read_chromhmm_binary(write(tmp_path / name, lines, end, last))
    assert found.X.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found.X.dtype == np.uint8
    assert found.var_names.tolist() == ["a", "b", "c"]
    assert found.obs["chrom"].tolist() == ["chr1"] * 3
    assert found.obs[["start", "end"]].to_numpy().tolist() == [[0, 200], [200, 400], [400, 600]]
    assert found.obs["cell_type"].tolist() == ["K562"] * 3
    assert found.obs_names[1] == "chr1:200-400"


def test_a_folder_of_cell_types_and_chromosomes(tmp_path):
    write(tmp_path / "B_chr10_binary.txt", ["B\tchr10", "a\tb", "0\t1"])
    write(tmp_path / "B_chr2_binary.txt.gz", ["B\tchr2", "b\ta", "1\t0", "0\t0"])
    write(tmp_path / "A_chr2_binary.txt", ["A\tchr2", "a\tb", "1\t1"])
    (tmp_path / "notes.txt").write_text("not this")
    found = dbio.io.read_chromhmm_binary(tmp_path, chrom_sizes={"chr2": 399, "chr10": 200})
    assert found.obs["cell_type"].tolist() == ["A", "B", "B", "B"]
    assert found.obs["chrom"].tolist() == ["chr2", "chr2", "chr2", "chr10"]  # 2 comes before 10
    assert found.X.tolist() == [[1, 1], [0, 1], [0, 0], [0, 1]]  # marks aligned by name
    assert found.obs["end"].tolist() == [200, 200, 399, 200]
    assert found.obs_names.is_unique


def test_twos_and_marks_of_other_files_are_missing(tmp_path):
    write(tmp_path / "A_chr1_binary.txt", ["A\tchr1", "a\tb", "1\t2", "0\t1"])
    found = dbio.io.read_chromhmm_binary(tmp_path)
    np.testing.assert_array_equal(found.X, [[1, np.nan], [0, 1]])
    assert found.X.dtype == np.float32
    write(tmp_path / "B_chr1_binary.txt", ["B\tchr1", "c\ta", "0\t1"])
    with pytest.warns(UserWarning, match=r"marks \['b', 'c'\] are not in all files"):
        found = dbio.io.read_chromhmm_binary(tmp_path)
    np.testing.assert_array_equal(found.X, [[1, np.nan, np.nan], [0, 1, np.nan], [1, np.nan, 0]])


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([""], "line 1 must hold cell type and chromosome.*the file is empty"),
        (["A", "a", "0"], "line 1 must hold cell type and chromosome"),
        (["A\tchr1"], "line 2 must hold the names of the marks"),
        (["A\tchr1", "a\ta", "0\t0"], r"marks that occur twice: \['a'\]"),
        (["A\tchr1", "a\tb"], "has no bins"),
        (["A\tchr1", "a\tb", "0\t0", "1"], "line 4 has 1 values, expected 2"),
        (["A\tchr1", "a\tb", "0\t0", "1\t0\t1"], "line 4 has 3 values, expected 2"),
        (["A\tchr1", "a\tb", "0\t0", "1\t7"], "line 4 must hold 0 .*1 .*2 .*found.*dbio.pp.binarize"),
        (["A\tchr1", "a\tb", "0 0", "1 0"], "line 3 has 1 values"),
        (["A\tchr1", "a", "0", "", "1"], "line 4"),
    ],
)
def test_bad_binary_files_are_refused_by_line(tmp_path, lines, problem):
    with pytest.raises(ValueError, match=problem):
        dbio.io.read_chromhmm_binary(write(tmp_path / "A_chr1_binary.txt", lines))


def test_bins_past_the_end_of_a_chromosome(tmp_path):
    path = write(tmp_path / "A_chr1_binary.txt", ["A\tchr1", "a", *"00000"])
    with pytest.raises(ValueError, match="5 bins, which of 200 bases reach past the end of chr1.*bin_size"):
        dbio.io.read_chromhmm_binary(path, chrom_sizes={"chr1": 700})
    with pytest.warns(UserWarning, match="fewer than the 50 of 200 bases"):
        dbio.io.read_chromhmm_binary(path, chrom_sizes={"chr1": 10_000})
    with pytest.raises(ValueError, match="prefix 'chr'"):
        dbio.io.read_chromhmm_binary(path, chrom_sizes={"1": 1000})
    with pytest.raises(ValueError, match="bin_size must be"):
        dbio.io.read_chromhmm_binary(path, bin_size=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no files whose names end with _binary.txt"):
        dbio.io.read_chromhmm_binary(tmp_path / "empty")
    write(tmp_path / "copy_binary.txt", ["A\tchr1", "a", "0"])
    with pytest.raises(ValueError, match="both hold chr1 of 'A'"):
        dbio.io.read_chromhmm_binary(tmp_path)


def bins(values, starts=None, chrom="chr1", axis="obs", **columns):
    values = np.asarray(values)
    starts = np.arange(len(values)) * 200 if starts is None else np.asarray(starts)
    table = pd.DataFrame(
        {"chrom": chrom, "start": starts, "end": starts + 200, **columns},
        index=[f"b{index}" for index in range(len(values))],
    )
    names = pd.DataFrame(index=list("abcdefgh"[: values.shape[1]]))
    return ad.AnnData(values, obs=table, var=names) if axis == "obs" else ad.AnnData(values.T, obs=names, var=table)


@pytest.mark.parametrize("axis", ["obs", "var"])
@pytest.mark.parametrize("compress", [True, False])
def test_binary_files_come_back(tmp_path, axis, compress):
    values = np.random.default_rng(1).integers(0, 2, (40, 3)).astype(np.float32)
    values[3, 1] = np.nan
    adata = bins(values, axis=axis)
    paths = dbio.io.write_chromhmm_binary(adata, tmp_path / "new", cell_type="K562", compress=compress)
    assert [path.rsplit("/", 1)[1] for path in paths] == [f"K562_chr1_binary.txt{'.gz' if compress else ''}"]
    np.testing.assert_array_equal(dbio.io.read_chromhmm_binary(tmp_path / "new").X, values)


def test_gaps_and_cell_types_are_written(tmp_path):
    adata = bins([[1], [1], [0]], starts=[400, 1000, 0], cell=["A", "A", "B"])
    dbio.io.write_chromhmm_binary(adata, tmp_path, cell_type_key="cell", compress=False)
    assert (tmp_path / "A_chr1_binary.txt").read_text() == "A\tchr1\na\n2\n2\n1\n2\n2\n1\n"
    assert (tmp_path / "B_chr1_binary.txt").read_text() == "B\tchr1\na\n0\n"


def test_what_binary_files_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="found 3 of mark 'a'.*pp.binarize"):
        dbio.io.write_chromhmm_binary(bins([[3]]), tmp_path)
    with pytest.raises(ValueError, match="start at multiples"):
        dbio.io.write_chromhmm_binary(bins([[1]], starts=[100]), tmp_path)
    with pytest.raises(ValueError, match="must be part of a file's name"):
        dbio.io.write_chromhmm_binary(bins([[1]]), tmp_path, cell_type="a/b")
    with pytest.raises(ValueError, match="several cell types.*cell_type_key"):
        dbio.io.write_chromhmm_binary(bins([[1], [1]], starts=[0, 0]), tmp_path)
    twice = bins([[1, 0]])
    twice.var_names = ["a", "a"]
    with pytest.raises(ValueError, match="names of marks must be unique"):
        dbio.io.write_chromhmm_binary(twice, tmp_path)
    with pytest.raises(KeyError, match="no 'x'"):
        dbio.io.write_chromhmm_binary(bins([[1]]), tmp_path, layer="x")
    with pytest.raises(KeyError, match="no column 'x'"):
        dbio.io.write_chromhmm_binary(bins([[1]]), tmp_path, cell_type_key="x")
    with pytest.raises(ValueError, match="1 lack one"):
        dbio.io.write_chromhmm_binary(bins([[1], [1]], cell=["A", None]), tmp_path, cell_type_key="cell")
    assert not list(tmp_path.iterdir())


@pytest.mark.data
def test_shipped_binary_files(data_folder):
    folder = data_folder / "chromatin_states"
    sizes = folder / "annot" / "chromsizes.hg18.txt"
    found = dbio.io.read_chromhmm_binary(folder / "GM12878_chr11_binary.txt.gz", chrom_sizes=sizes)
    stored = np.load(folder / "GM12878_hg18chr11_codes.npz")
    codes = next(stored[key] for key in stored.files if key != "marks")
    assert found.var_names.tolist() == [str(mark) for mark in stored["marks"]]
    np.testing.assert_array_equal(found.X, (codes[:, None] >> np.arange(10)) & 1)


# Segments ------------------------------------------------------------------------------------------------------------


def table(**columns):
    frame = {
        "chrom": ["chr1", "chr1", "chr2"],
        "start": [0, 400, 0],
        "end": [400, 600, 200],
        "state": ["E1", "E10", "E2"],
    }
    return pd.DataFrame(frame | columns)


@pytest.mark.parametrize("name", ["s.bed", "s.bed.gz"])
@pytest.mark.parametrize("dense", [False, True])
def test_segments_come_back(tmp_path, name, dense):
    colors = {"E1": "#ff0000", "E10": "#00ff80", "E2": "#000001"}
    dbio.io.write_segments(table(), tmp_path / name, dense=dense, colors=colors)
    found = dbio.io.read_segments(tmp_path / name)
    assert found[["chrom", "start", "end", "state"]].to_numpy().tolist() == table().to_numpy().tolist()
    assert found["state"].cat.categories.tolist() == ["E1", "E2", "E10"]
    assert ("color" in found) == dense
    if dense:
        assert found["color"].tolist() == ["#ff0000", "#00ff80", "#000001"]


def test_a_dense_file_is_what_genome_browsers_expect(tmp_path):
    dbio.io.write_segments(
        table(color=["#ff0000", "#0a0b0c", "#ffffff"]), tmp_path / "s.bed", dense=True, name="K562",
        chrom_sizes={"chr1": 500, "chr2": 900},
    )  # fmt: skip
    assert (tmp_path / "s.bed").read_text().splitlines() == [
        'track name="K562" description="K562" visibility=1 itemRgb="On"',
        "chr1\t0\t400\tE1\t0\t.\t0\t400\t255,0,0",
        "chr1\t400\t500\tE10\t0\t.\t400\t500\t10,11,12",
        "chr2\t0\t200\tE2\t0\t.\t0\t200\t255,255,255",
    ]


def test_segments_with_blanks_track_lines_and_line_ends(tmp_path):
    path = tmp_path / "s.bed"
    path.write_bytes(b"browser position chr1\r\ntrack name=x\r\nchr1 0 200 7_Enh\r\nchr1 200 400 15_Quies")
    found = dbio.io.read_segments(path)
    assert found["state"].tolist() == ["7_Enh", "15_Quies"]
    assert found["state"].cat.categories.tolist() == ["7_Enh", "15_Quies"]
    assert found["end"].tolist() == [200, 400]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no segments"),
        ("chr1\t0\t200\n", "at least 4 columns"),
        ("chr1\t0\tx\tE1\n", "cannot be read as BED"),
        ("chr1\t300\t200\tE1\n", "0 <= start < end"),
        ("chr1\t0\t200\tE1\t0\t.\t0\t200\tred\n", "three numbers below 256.*'red'"),
    ],
)
def test_bad_segments_are_refused(tmp_path, text, problem):
    (tmp_path / "s.bed").write_text(text)
    with pytest.raises(ValueError, match=problem):
        dbio.io.read_segments(tmp_path / "s.bed")


def test_segments_that_cannot_be_written(tmp_path):
    path = tmp_path / "s.bed"
    with pytest.raises(KeyError, match=r"no columns \['state'\]"):
        dbio.io.write_segments(table().drop(columns="state"), path)
    with pytest.raises(TypeError, match=r"found AnnData; of an AnnData take dbio.get.chromatin_states\(adata\)"):
        dbio.io.write_segments(dbio.datasets.simulate_chromatin_states(n_bins=20), path)
    with pytest.raises(ValueError, match="at least one row"):
        dbio.io.write_segments(table().iloc[:0], path)
    with pytest.raises(ValueError, match="one cell type, found"):
        dbio.io.write_segments(table(cell_type=["A", "B", "A"]), path)
    with pytest.raises(KeyError, match=r"no colour for states \['E10', 'E2'\]"):
        dbio.io.write_segments(table(), path, dense=True, colors={"E1": "red"})
    with pytest.raises(ValueError, match="within their chromosome.*first: \\['chr1', '400', '300', 'E10'\\]"):
        dbio.io.write_segments(table(), path, chrom_sizes={"chr1": 300, "chr2": 200})
    for broken in ("E1\tx", "E1\n"):
        with pytest.raises(ValueError, match="column 'state' must not hold tabs or line ends, found 'E1"):
            dbio.io.write_segments(table(state=[broken, "E2", "E3"]), path)
        with pytest.raises(ValueError, match="name must not hold quotes, tabs or line ends"):
            dbio.io.write_segments(table(), path, dense=True, name=broken)
    assert not path.exists()


def test_quotes_in_states_are_written_as_they_are(tmp_path):
    dbio.io.write_segments(table(state=['a "b"', "5' UTR", "x,y"]), tmp_path / "s.bed")
    states = [line.split("\t")[3] for line in (tmp_path / "s.bed").read_text().splitlines()]
    assert states == ['a "b"', "5' UTR", "x,y"]

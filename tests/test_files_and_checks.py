"""Writers that leave no broken file behind, and checks of arguments that cast nothing unseen."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from diffbio_sc._checks import as_numbers, counted, found_object, name_heads, whole_number, whole_numbers
from diffbio_sc._files import replacing


def _write_half(path):
    with replacing(path) as temporary:
        assert temporary.endswith(".bw")
        Path(temporary).write_text("half")
        raise RuntimeError("on purpose")


def test_a_failed_writer_leaves_the_old_file_or_none(tmp_path):
    path = tmp_path / "a.bw"
    for before in (None, "old"):
        if before is not None:
            path.write_text(before)
        with pytest.raises(RuntimeError, match="on purpose"):
            _write_half(path)
        assert [file.name for file in tmp_path.iterdir()] == ([] if before is None else ["a.bw"])
    assert path.read_text() == "old"


def test_a_finished_writer_replaces_the_file_that_a_link_points_to(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    os.chmod(target, 0o640)
    link.symlink_to(target)
    with replacing(link) as temporary:
        Path(temporary).write_text("new")
        assert target.read_text() == "old"
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    with replacing(tmp_path / "fresh") as temporary:
        pass
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_places_where_no_file_can_be_written(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="there is no folder .*absent.* make it first"),
        replacing(tmp_path / "absent" / "a.bed"),
    ):
        pass
    with pytest.raises(IsADirectoryError, match="is a folder"), replacing(tmp_path):
        pass
    with replacing("/dev/null") as temporary:
        assert temporary == "/dev/null"


def test_numbers_with_their_nouns():
    assert [counted(number, "read") for number in (0, 1, 2000)] == ["0 reads", "1 read", "2,000 reads"]


def test_name_heads():
    assert name_heads(list("abc")) == "['a', 'b', 'c']"
    assert name_heads(range(7)) == "['0', '1', '2', '3', '4'] ... (7)"


@pytest.mark.parametrize("value", [3, 3.0, np.int8(3), np.float32(3), np.uint64(3)])
def test_a_whole_number_of_any_kind(value):
    assert whole_number(value, "width") == 3
    assert type(whole_number(value, "width")) is int


@pytest.mark.parametrize("value", [True, np.True_, 2.5, "3", None, np.nan, np.inf, 0, -1, [3]])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match="width must be a whole number of at least 1 bases, found"):
        whole_number(value, "width", unit=" bases")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int64", "uint64", "float16", "float64", "O"])
def test_whole_numbers_of_any_kind(dtype):
    found = whole_numbers(np.array([0, 5, 120], dtype), "start", minimum=0, maximum=2**31 - 1)
    assert found.dtype == np.int64
    assert found.tolist() == [0, 5, 120]


@pytest.mark.parametrize(
    "values",
    [[1.5], [np.nan], [np.inf], [-1], [2**31], np.array([2**63], np.uint64), ["5"], [None], [True], [5 + 0j]],
)
def test_what_a_cast_would_change_is_refused(values):
    with pytest.raises(ValueError, match="start must be whole numbers"):
        whole_numbers(values, "start", minimum=0, maximum=2**31 - 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a.h5ad", "found str 'a.h5ad': read the file first, with anndata.read_h5ad"),
        (Path("b.h5mu"), "found PosixPath 'b.h5mu': read the file first, with mudata.read_h5mu"),
        ("c.zarr/", "found str 'c.zarr/': read the file first, with anndata.read_zarr"),
        ("d.bw", "found str 'd.bw': read the file first"),
        (None, "found NoneType"),
    ],
)
def test_what_was_found_in_place_of_an_object(value, text):
    assert found_object(value).replace("WindowsPath", "PosixPath") == text


def test_arrays_and_tables_of_numbers():
    np.testing.assert_array_equal(as_numbers([[1, 2]], "first"), [[1.0, 2.0]])
    for value in (None, "a.csv", [["x"]], [[1], [1, 2]]):
        with pytest.raises(TypeError, match="first must be an array or a table of numbers, found"):
            as_numbers(value, "first")

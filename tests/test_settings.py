from __future__ import annotations

import logging

import numpy as np
import pytest

import diffbio_sc as dbio
from diffbio_sc._logging import logger


def test_verbosity_takes_names_and_numbers():
    with dbio.settings.override(verbosity="hint"):
        assert dbio.settings.verbosity == 3
        dbio.settings.verbosity = 0
        assert logging.getLogger("diffbio_sc").level == logging.ERROR
    assert dbio.settings.verbosity == 1
    assert logging.getLogger("diffbio_sc").level == logging.WARNING


def test_messages_follow_verbosity(capsys):
    logger.info("quiet")
    with dbio.settings.override(verbosity="info"):
        logger.info("loud")
    assert capsys.readouterr().err == "loud\n"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("verbosity", "shout", "0 to 4 or one of"),
        ("verbosity", 9, "found 9"),
        ("progress_bar", 1, "True or False"),
        ("figure_dpi", 0, "positive integer"),
        ("color_map", "nosuchmap", "matplotlib colour map"),
        ("cache_dir", __file__, "must be a folder"),
        *[
            ("block_bytes", value, "at least 1,000,000 bytes")
            for value in (10, "-3MB", "256 pages", None, True, float("inf"))
        ],
    ],
)
def test_bad_values_are_refused(name, value, message):
    before = repr(dbio.settings)
    with pytest.raises(ValueError, match=message):
        setattr(dbio.settings, name, value)
    assert repr(dbio.settings) == before


def test_unknown_setting_is_refused():
    with pytest.raises(AttributeError, match="nosuch"), dbio.settings.override(nosuch=1, verbosity=3):
        pass
    assert dbio.settings.verbosity == 1


def test_progress_bar_is_silenced(capsys):
    from diffbio_sc._progress import progress

    with dbio.settings.override(progress_bar=False):
        assert list(progress(range(3), "Counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_cache_folder_is_made_at_first_use(tmp_path):
    with dbio.settings.override(cache_dir=tmp_path / "deep" / "cache"):
        assert not (tmp_path / "deep").exists()
        assert dbio.settings.cache_dir.is_dir()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("256MB", 256_000_000),
        ("0.5 gb", 500_000_000),
        ("1GiB", 2**30),
        ("256M", 256_000_000),
        ("3e8", 300_000_000),
        (3e8, 300_000_000),
        (np.int64(300_000_000), 300_000_000),
    ],
)
def test_memory_of_blocks_is_a_number_or_a_text(value, expected):
    with dbio.settings.override(block_bytes=value):
        assert dbio.settings.block_bytes == expected

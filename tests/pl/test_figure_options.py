"""All plots take and give back the same."""

from __future__ import annotations

import inspect

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import diffbio_sc as dbio

SHARED = {"ax": None, "show": None, "save": None, "return_fig": False}


@pytest.mark.parametrize("name", dbio.pl.__all__)
def test_plots_share_their_last_options(name):
    parameters = inspect.signature(getattr(dbio.pl, name)).parameters
    assert {option: parameters[option].default for option in SHARED} == SHARED
    assert list(parameters)[-3:] == list(SHARED)[1:]
    assert parameters["save"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.fixture(scope="module")
def states():
    adata = dbio.datasets.simulate_chromatin_states(n_bins=400, n_states=3)
    dbio.tl.chromatin_states(adata, n_states=3, effort="fast")
    return adata


def test_axes_or_figure(states, tmp_path):
    import matplotlib.pyplot as plt

    axes = dbio.pl.chromatin_states(states, show=False)
    assert isinstance(axes, Axes)
    assert axes.get_xticklabels()
    figure = dbio.pl.chromatin_states(states, return_fig=True, save=tmp_path / "states.png")
    assert isinstance(figure, Figure)
    assert (tmp_path / "states.png").stat().st_size > 5000
    _, own = plt.subplots()
    assert dbio.pl.chromatin_states(states, ax=own) is own
    assert dbio.pl.chromatin_states(states, ax=own, return_fig=True) is own.figure


@pytest.mark.parametrize("name", dbio.pl.__all__)
def test_a_place_that_cannot_be_written_is_told_first(name, states, tmp_path):
    arguments = {"peaks": ["chr1:1-100"], "logo": [0]}.get(name, [])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        getattr(dbio.pl, name)(states, *arguments, save=tmp_path / "missing" / "figure.png")

"""Activity of regions in cell types from their sequence: a closed-form linear start, then what a network adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from diffbio_sc.genome.region_set import RegionSet

__all__ = ["RegionModel", "RegionSet", "fit_regions"]


def fit_regions(
    tokens: Int[np.ndarray, "n length"],
    labels: Float[np.ndarray, "n cells"],
    *,
    chromosome: Int[np.ndarray, " n"],
    split: Int[np.ndarray, " n"] | None = None,
    tf_context: Float[np.ndarray, "cells tfs"] | None = None,
    random_context: bool = False,
    neighbourhood: RegionSet | None = None,
    motifs: Mapping[str, Float[np.ndarray, "width 4"]] | None = None,
    refine: bool = True,
    average: bool = True,
    max_epochs: int = 15,
    rng: int | np.random.Generator | None = 0,
    progress: bool = True,
) -> RegionModel:
    """Fit the model.

    Parameters
    ----------
    tokens
        Sequences of one length, int8: A C G T N = 0 1 2 3 4.
    labels
        Activity of each region in each cell type: 0, 1, or NaN where it is not known.
    chromosome
        Code of each region's chromosome: folds and blocks never divide one, unless there is only one.
    split
        0 training, 1 validation, 2 test (never looked at, but for the report). None holds out chromosomes.
    tf_context
        Expression of transcription factors by cell type; a row of NaN for a cell type without any. Such cell types
        serve training as additional outputs and no measure of the report counts them.
    random_context
        Control: take a random code of each cell type instead of ``tf_context``.
    neighbourhood
        Where the regions lie. Given, the model also sees how far and how many the other regions of the set are and
        what is predicted for them; it then fits only sets of the same density. Default: the sequence alone.
    motifs
        Log-odds matrices by name; the best score on both strands of each becomes a column of the linear start.
    refine
        Whether to train a network on what the linear start leaves.
    average
        Whether to average with a logistic regression on 7-mers.
    max_epochs
        Most epochs of the network.
    rng
        Seed or generator.
    progress
        Whether to show a progress bar.

    Returns
    -------
    The model. Its report says what was fitted, what was kept and why.
    """
    raise NotImplementedError


class RegionModel:
    """A fitted model of regions.

    Attributes
    ----------
    report
        What the fit did, in types that h5ad and zarr store: ``penalties``, ``history``, ``metrics`` (by part
        ``start``, ``refined``, ``averaged``, ``floor`` and split), ``kept`` and ``reason``.
    """

    report: dict[str, Any]

    def predict(
        self,
        tokens: Int[np.ndarray, "n length"],
        *,
        neighbourhood: RegionSet | None = None,
        tf_context: Float[np.ndarray, "new_cells tfs"] | None = None,
        cells: Int[np.ndarray, " chosen"] | None = None,
    ) -> Float[np.ndarray, "n cells"]:
        """Return log-odds of activity, float32.

        Parameters
        ----------
        tokens
            Sequences of the length that the model was fitted to.
        neighbourhood
            Where the regions lie; needed if, and only if, the model was fitted with it.
        tf_context
            Expression in cell types that the model has not seen, in its factors' order: the result has a column for
            each of these instead of those of the fitted cell types.
        cells
            Columns to return. Default: all.
        """
        raise NotImplementedError

    def one_hot_logits(self, one_hot: Float[Array, "n length 4"]) -> Float[Array, "n cells"]:
        """Return log-odds in JAX, differentiable in relaxed sequences; equal to :meth:`predict` on hard ones."""
        raise NotImplementedError

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything that the model is made of, as named arrays."""
        raise NotImplementedError

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], report: Mapping[str, Any] | None = None) -> RegionModel:
        """Build the model from what :meth:`arrays` returned."""
        raise NotImplementedError

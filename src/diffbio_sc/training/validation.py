"""Samples that a run learns from, and those that it is judged by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Array

from diffbio_sc.numerics.padding import bucket_size
from diffbio_sc.training import batches
from diffbio_sc.training.devices import Placement

#: A share of the data to hold out, the rows of it to hold out, or data of its own.
Validation: TypeAlias = float | np.ndarray | Mapping[str, Any]


class Split(NamedTuple):
    """Rows to train on, and rows that are held out; ``own`` is validation data of its own instead of those."""

    rows: np.ndarray
    held_out: np.ndarray
    own: Mapping[str, Any] | None


def split(validation: Validation | None, size: int, key: Array) -> Split:
    """Divide ``size`` samples.

    Raises
    ------
    ValueError
        If a share is not between 0 and 1, or rows are not some of those of the data.
    """
    rows, none = np.arange(size), np.zeros(0, np.int64)
    if validation is None or isinstance(validation, Mapping):
        return Split(rows, none, validation)
    if isinstance(validation, bool) or np.ndim(validation) == 0:
        share = validation
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(
                f"validation must be a share of the samples (at least 0, below 1), rows or data, found {share!r}."
            )
        return Split(*batches.split_samples(key, size, float(share)), None) if share > 0 else Split(rows, none, None)
    held_out = np.sort(np.asarray(validation))
    rows = np.setdiff1d(rows, held_out)
    if held_out.ndim != 1 or held_out.dtype.kind not in "iu" or not len(held_out):
        raise ValueError(f"validation must hold rows, whole numbers along one axis, found {validation!r}.")
    if len(rows) == 0 or len(rows) + len(held_out) != size:
        raise ValueError(f"validation must be some of the rows 0 ... {size - 1}, each once, and leave others.")
    return Split(rows, held_out, None)


def only_own(validation: Validation | None) -> Split:
    """Samples of a source, which cannot be divided: validation data are given apart.

    Raises
    ------
    ValueError
        If they are not.
    """
    if validation is not None and not isinstance(validation, Mapping):
        raise ValueError(
            "samples of a source come part by part and are not divided: give validation data of their own, a dict of "
            "arrays."
        )
    none = np.zeros(0, np.int64)
    return Split(none, none, validation)


def place(
    data: Mapping[str, Any],
    sample_keys: Collection[str] | None,
    size: int,
    parts: Split,
    *,
    placement: Placement,
    blank: bool = False,
) -> tuple[batches.SampleSet, batches.SampleSet | None]:
    """Put training and validation samples on the device; held-out rows share the arrays of the others.

    ``blank`` as of :func:`~diffbio_sc.training.batches.place_samples`, for the training samples.
    """
    samples, shared = batches.place_samples(data, sample_keys, size, placement=placement, blank=blank)
    index = batches.padded_index(parts.rows, placement=placement)
    training = batches.SampleSet(samples, shared, index, len(parts.rows))
    if len(parts.held_out):
        # As long as the training set's, so that the same code serves both.
        index = batches.padded_index(parts.held_out, bucket=len(index), placement=placement)
        return training, batches.SampleSet(samples, shared, index, len(parts.held_out))
    if parts.own is None:
        return training, None
    keys = samples if sample_keys is None else sample_keys
    number = batches.count_samples(parts.own, keys, name="validation data")
    samples, own_shared = batches.place_samples(parts.own, tuple(samples), number, placement=placement)
    index = batches.padded_index(np.arange(number), placement=placement)
    return training, batches.SampleSet(samples, {**shared, **own_shared}, index, number)


def largest_batch(rows: int, *, weighted: bool) -> int:
    """Batch that holds all samples: of a loss with weights up to a size that data sets of a bucket share."""
    return bucket_size(rows) if weighted else rows

"""What the arrays of the contextual sequence model must look like, whatever source they come from.

Every source of :mod:`diffbio_sc.sources` checks its arrays here before it hands them out, so that peak labels and
chromatin states, synthetic and real data share one contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "REQUIRED_KEYS",
    "TARGET_SEMANTICS",
    "ContextualDataset",
    "validate_contextual_epigenomics_dataset",
]

#: Arrays that a data set must have.
REQUIRED_KEYS = ("sequence", "tf_context", "chromatin_contacts", "targets")
#: What targets may mean.
TARGET_SEMANTICS = ("binary_peak_mask", "chromatin_state_id")

_AXES = {
    "sequence": ((3,), "(batch, length, 4)"),
    "tf_context": ((2, 3), "(batch, features) or (batch, contexts, features)"),
    "chromatin_contacts": ((3,), "(batch, positions, positions)"),
    "targets": ((2, 3), "(batch, positions) or (batch, contexts, positions)"),
    "sequence_mask": ((2,), "(batch, length)"),
}
_TOLERANCE = 1e-5


class ContextualDataset(NamedTuple):
    """What a data set that keeps the contract holds.

    Attributes
    ----------
    examples, length, positions
        Number of sequences, their length in bases, and number of positions that have a target.
    contexts
        Number of contexts of each sequence.
    tf_features
        Number of features of a context.
    unknown_bases, masked_bases
        Number of all-zero rows of sequences (N), and of masked positions.
    """

    examples: int
    length: int
    positions: int
    contexts: int
    tf_features: int
    unknown_bases: int
    masked_bases: int


def validate_contextual_epigenomics_dataset(
    data: Mapping[str, Any],
    *,
    target_semantics: str | None = None,
    num_output_classes: int | None = None,
    token_width: int = 1,
    required_keys: tuple[str, ...] = REQUIRED_KEYS,
) -> ContextualDataset:
    """Check arrays against the contract of the contextual sequence model.

    Parameters
    ----------
    data
        Arrays by name: ``sequence`` (batch, length, 4), rows that sum to 1, or all-zero rows for unknown bases (N);
        ``tf_context`` (batch, features) or (batch, contexts, features); ``chromatin_contacts`` (batch, positions,
        positions), symmetric and not negative; ``targets`` (batch, positions), or (batch, contexts, positions) if there
        are several contexts; optionally ``sequence_mask`` (batch, length), 1 for bases that exist. What is masked is
        not looked at. Other names are left alone.
    target_semantics
        ``"binary_peak_mask"`` (0 or 1), ``"chromatin_state_id"`` (whole numbers below ``num_output_classes``), or None,
        which leaves the values unchecked.
    num_output_classes
        Number of classes; needed for ``"chromatin_state_id"``. A binary mask may say 1.
    token_width
        Bases of a position: ``positions`` is ``length / token_width``, rounded up.
    required_keys
        Arrays that must be there. Further ones of the contract are checked if they are.

    Returns
    -------
    Sizes, and how many bases are unknown or masked.

    Raises
    ------
    KeyError
        If an array is missing.
    TypeError
        If an array is sparse or does not hold real numbers.
    ValueError
        If a shape, value or meaning breaks the contract; the message names the first offence.

    Examples
    --------
    >>> import numpy as np
    >>> from diffbio_sc.operators.epigenomics import validate_contextual_epigenomics_dataset
    >>> data = {"sequence": np.eye(4)[np.zeros((2, 6), int)], "tf_context": np.ones((2, 3))}
    >>> data |= {"chromatin_contacts": np.ones((2, 6, 6)), "targets": np.zeros((2, 6))}
    >>> sizes = validate_contextual_epigenomics_dataset(data, target_semantics="binary_peak_mask")
    >>> data["targets"][0, 0] = 2
    >>> validate_contextual_epigenomics_dataset(data, target_semantics="binary_peak_mask")
    Traceback (most recent call last):
    ...
    ValueError: data['targets'] must be 0 or 1 for binary_peak_mask, found 2.0 at (0, 0).
    """
    missing = [key for key in required_keys if key not in data]
    if missing:
        raise KeyError(
            f"the contextual contract needs {', '.join(f'data[{key!r}]' for key in missing)}; "
            f"found the keys {sorted(map(str, data))}."
        )
    if "sequence" not in data:
        raise KeyError("the contextual contract needs data['sequence'], by which the other arrays are checked.")
    arrays = {key: _as_array(key, data[key]) for key in _AXES if key in data}
    sequence = arrays["sequence"]
    examples, length = sequence.shape[:2]
    positions = -(-length // token_width)
    _check_shapes(arrays, positions)
    seen = np.ones((examples, length), bool)
    if "sequence_mask" in arrays:
        seen = _check_mask(arrays["sequence_mask"])
    padded = np.pad(seen, ((0, 0), (0, positions * token_width - length)))
    seen_positions = padded.reshape(examples, positions, token_width).any(2)
    unknown = _check_sequence(sequence, seen)
    if "tf_context" in arrays:
        _check_finite("tf_context", arrays["tf_context"])
    if "chromatin_contacts" in arrays:
        _check_contacts(arrays["chromatin_contacts"], seen_positions)
    if "targets" in arrays:
        _check_targets(arrays["targets"], seen_positions, target_semantics, num_output_classes)
    elif target_semantics is not None:
        raise KeyError(f"target_semantics={target_semantics!r} needs data['targets'].")
    context = arrays.get("tf_context")
    return ContextualDataset(
        examples,
        length,
        positions,
        contexts=1 if context is None or context.ndim == 2 else context.shape[1],
        tf_features=0 if context is None else context.shape[-1],
        unknown_bases=unknown,
        masked_bases=int((~seen).sum()),
    )


def _as_array(key: str, value: Any) -> np.ndarray:
    if hasattr(value, "tocsr"):
        raise TypeError(f"data[{key!r}] is a scipy sparse matrix: pass data[{key!r}].toarray().")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and str(array.dtype) != "bfloat16":
        raise TypeError(f"data[{key!r}] must hold real numbers, found dtype {array.dtype}.")
    ranks, shape = _AXES[key]
    if array.ndim not in ranks:
        raise ValueError(f"data[{key!r}] must have the shape {shape}, found {array.shape}.")
    return array


def _check_shapes(arrays: Mapping[str, np.ndarray], positions: int) -> None:
    sequence = arrays["sequence"]
    examples, length = sequence.shape[:2]
    if sequence.shape[2] != 4:
        raise ValueError(f"data['sequence'] must have 4 columns, A C G T, found shape {sequence.shape}.")
    if examples == 0 or length == 0:
        raise ValueError(f"data['sequence'] must hold at least one base, found shape {sequence.shape}.")
    for key, array in arrays.items():
        if len(array) != examples:
            raise ValueError(f"data[{key!r}] must have {examples} rows as data['sequence'] has, found {len(array)}.")
    contacts = arrays.get("chromatin_contacts")
    if contacts is not None and contacts.shape[1] != contacts.shape[2]:
        raise ValueError(f"data['chromatin_contacts'] must be square, found shape {contacts.shape}.")
    if contacts is not None and contacts.shape[1] != positions:
        raise ValueError(
            f"data['chromatin_contacts'] must have {positions} rows and columns, one for each position of the "
            f"sequence, found shape {contacts.shape}."
        )
    targets, context = arrays.get("targets"), arrays.get("tf_context")
    if targets is not None:
        several = context is not None and context.ndim == 3
        expected = (examples, context.shape[1], positions) if several else (examples, positions)  # type: ignore[union-attr]
        if targets.shape != expected:
            raise ValueError(f"data['targets'] must have the shape {expected}, found {targets.shape}.")
    mask = arrays.get("sequence_mask")
    if mask is not None and mask.shape[1] != length:
        raise ValueError(f"data['sequence_mask'] must have {length} columns, one for each base, found {mask.shape}.")


def _check_mask(mask: np.ndarray) -> np.ndarray:
    _check_finite("sequence_mask", mask)
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"data['sequence_mask'] must be 0 or 1, found {_first(mask, ~np.isin(mask, (0, 1)))}.")
    seen = mask.astype(bool)
    empty = np.flatnonzero(~seen.any(1))
    if len(empty):
        raise ValueError(f"data['sequence_mask'] masks all of {len(empty)} sequences; the first is row {empty[0]}.")
    return seen


def _check_sequence(sequence: np.ndarray, seen: np.ndarray) -> int:
    _check_finite("sequence", sequence, seen)
    negative = (sequence < 0) & seen[..., None]
    if negative.any():
        raise ValueError(f"data['sequence'] must not be negative, found {_first(sequence, negative)}.")
    total = sequence.sum(-1, dtype=np.float64)
    unknown = (total == 0) & seen
    bad = (np.abs(total - 1) > _TOLERANCE) & ~unknown & seen
    if bad.any():
        raise ValueError(
            "data['sequence'] must have rows that sum to 1 (one-hot), or to 0 for an unknown base, found a sum of "
            f"{_first(total, bad)}."
        )
    return int(unknown.sum())


def _check_contacts(contacts: np.ndarray, seen: np.ndarray) -> None:
    pairs = seen[:, :, None] & seen[:, None, :]
    _check_finite("chromatin_contacts", contacts, pairs)
    negative = (contacts < 0) & pairs
    if negative.any():
        raise ValueError(f"data['chromatin_contacts'] must not be negative, found {_first(contacts, negative)}.")
    above = (contacts > 1) & pairs
    if above.any():
        raise ValueError(
            "data['chromatin_contacts'] must lie between 0 and 1: divide counts by what is expected and scale them, "
            f"found {_first(contacts, above)}."
        )
    values = np.where(pairs, contacts, 0).astype(np.float64)
    uneven = np.abs(values - values.transpose(0, 2, 1)) > _TOLERANCE
    if uneven.any():
        at = tuple(int(index) for index in np.argwhere(uneven)[0])
        mirrored = float(values[at[0], at[2], at[1]])
        raise ValueError(
            f"data['chromatin_contacts'] must be symmetric, found {float(values[at])} at {at} and {mirrored} mirrored."
        )


def _check_targets(targets: np.ndarray, seen: np.ndarray, semantics: str | None, classes: int | None) -> None:
    counted = np.broadcast_to(seen if targets.ndim == 2 else seen[:, None], targets.shape)
    _check_finite("targets", targets, counted)
    if semantics is None:
        return
    if semantics not in TARGET_SEMANTICS:
        raise ValueError(f"target_semantics must be one of {list(TARGET_SEMANTICS)}, found {semantics!r}.")
    if semantics == "binary_peak_mask":
        other = ~np.isin(targets, (0, 1)) & counted
        if other.any():
            raise ValueError(f"data['targets'] must be 0 or 1 for binary_peak_mask, found {_first(targets, other)}.")
        if classes not in (None, 1):
            raise ValueError(f"num_output_classes must be 1 for binary_peak_mask, found {classes!r}.")
        return
    if classes is None or isinstance(classes, bool) or classes != int(classes) or classes < 2:
        raise ValueError(f"chromatin_state_id needs num_output_classes, a whole number above 1, found {classes!r}.")
    fraction = (targets != np.floor(targets)) & counted
    if fraction.any():
        raise ValueError(
            f"data['targets'] must be whole numbers for chromatin_state_id, found {_first(targets, fraction)}."
        )
    outside = ((targets < 0) | (targets >= classes)) & counted
    if outside.any():
        raise ValueError(
            f"data['targets'] must be classes from 0 to {classes - 1} for chromatin_state_id, "
            f"found {_first(targets, outside)}."
        )


def _check_finite(key: str, array: np.ndarray, counted: np.ndarray | None = None) -> None:
    if array.dtype.kind in "biu":
        return
    bad = ~np.isfinite(array.astype(np.float64))
    if counted is not None:
        bad &= counted if counted.ndim == bad.ndim else counted[..., None]
    if bad.any():
        raise ValueError(f"data[{key!r}] must be finite, found {_first(array, bad)}.")


def _first(array: np.ndarray, where: np.ndarray) -> str:
    at = tuple(int(index) for index in np.argwhere(where)[0])
    return f"{array[at]} at {at}, and {int(where.sum()) - 1} more" if where.sum() > 1 else f"{array[at]} at {at}"

"""Loops and boundaries of a table as bins of a contact map."""

from __future__ import annotations

import numpy as np
import pandas as pd

from diffbio_sc._anndata.contacts import Contacts

PAIR_COLUMNS = ("chrom1", "start1", "end1", "chrom2", "start2", "end2")


def bins_at(contacts: Contacts, chrom: pd.Series, position: pd.Series | np.ndarray) -> np.ndarray:
    """Bin of the map that holds each position, -1 outside."""
    result = np.full(len(chrom), -1, np.int64)
    where = np.asarray(position, np.int64)
    names = chrom.astype(str).to_numpy(dtype=object)
    for name in set(names) & set(contacts.map.chromosomes()):
        span = contacts.map.span(name)
        mine = np.flatnonzero(names == name)
        place = np.searchsorted(contacts.map.start[span], where[mine], side="right") - 1 + span.start
        inside = (place >= span.start) & (where[mine] < contacts.map.end[np.maximum(place, 0)])
        result[mine[inside]] = place[inside]
    return result


def read_pairs(table: pd.DataFrame, contacts: Contacts, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins of both anchors, the smaller first, at the middle of each; and which lie within a chromosome of the map.

    Raises
    ------
    KeyError
        If a BEDPE column is missing.
    ValueError
        If no pair of a table that is not empty lies in the map.
    """
    missing = [column for column in PAIR_COLUMNS if column not in table]
    if missing:
        raise KeyError(f"{name} lack the columns {missing}; columns: {list(map(str, table.columns))}.")
    sides = []
    for side in "12":
        middle = (table[f"start{side}"].to_numpy(np.int64) + table[f"end{side}"].to_numpy(np.int64) - 1) // 2
        sides.append(bins_at(contacts, table[f"chrom{side}"], middle))
    first, second = np.minimum(*sides), np.maximum(*sides)
    chrom = contacts.map.chrom
    kept = (first >= 0) & (chrom[np.maximum(first, 0)] == chrom[np.maximum(second, 0)])
    if len(table) and not kept.any():
        raise ValueError(
            f"none of the {len(table)} {name} lies within a chromosome of the map; their first chromosomes: "
            f"{sorted(set(map(str, table['chrom1'])))[:5]}, the map's: {contacts.map.chromosomes()[:5]}."
        )
    return first, second, kept

"""Writing results into an object and its modalities, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc._anndata.results import write_results

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def write_modality_results(
    data: MuData | AnnData,
    *,
    obs: Mapping[str, Any] | None = None,
    obsm: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    modality_obsm: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write results into an object and its modalities, all or nothing.

    Parameters
    ----------
    data
        Object; a view is made a real object first.
    obs, obsm, uns
        Entries over all cells.
    modality_obsm
        Entries of ``.obsm`` of each modality of a MuData, over its own cells. A value of None removes the key, here as
        in the others.

    Raises
    ------
    ValueError
        If a value has another length than the object; nothing is written then.
    """
    here = {key: dict(values) for key, values in {"obs": obs, "obsm": obsm, "uns": uns}.items() if values}
    if data.is_view:
        _check_lengths(data, here, modality_obsm)
        data._init_as_actual(data.copy())
    written: list[tuple[Any, dict[str, Any]]] = []
    try:
        for name, values in (modality_obsm or {}).items():
            before = {key: data.mod[name].obsm.get(key) for key in values}
            write_results(data.mod[name], obsm=values)
            written.append((data.mod[name], before))
        write_results(data, **here)  # the last: it undoes its own part
    except BaseException:
        for modality, before in reversed(written):
            write_results(modality, obsm=before)
        raise


def _check_lengths(data, here, modality_obsm) -> None:
    """Raise before a view is made a real object, so that an error leaves it a view."""
    parts = [(data, {**here.get("obs", {}), **here.get("obsm", {})})]
    parts += [(data.mod[name], values) for name, values in (modality_obsm or {}).items()]
    for part, values in parts:
        for key, value in values.items():
            if value is not None and len(value) != part.n_obs:
                raise ValueError(f"{key!r} must have {part.n_obs} rows, found shape {np.shape(value)}.")

"""Predictions of the contextual sequence model in an AnnData: written all or nothing, and read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from diffbio_sc._anndata.contextual_data import SPLITS
from diffbio_sc._anndata.contextual_model import ContextualModel, store_contextual_model
from diffbio_sc._anndata.results import make_record

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc._anndata.genome_axis import GenomeAxis


class Fitted(NamedTuple):
    """A fitted model and what it predicts.

    Attributes
    ----------
    described
        The model.
    logits
        Log-odds of activity (regions, cell types).
    track
        Log-odds along windows (regions, cell types, tokens); None of whole regions.
    report
        What the fit did.
    """

    described: ContextualModel
    logits: np.ndarray
    track: np.ndarray | None
    report: dict[str, Any]


def logit_layer(key: str) -> str:
    """Name of the layer with log-odds."""
    return f"{key}_logit"


def probability_layer(key: str) -> str:
    """Name of the layer with probabilities."""
    return f"{key}_prob"


def write_contextual(
    adata: AnnData,
    regions: GenomeAxis,
    fitted: Fitted,
    *,
    key: str,
    params: Mapping[str, Any],
    split: np.ndarray,
    tokens: Mapping[str, np.ndarray],
) -> None:
    """Write a fitted model and its predictions."""
    described = fitted.described
    contract = {
        "kind": described.kind,
        "mode": described.mode,
        "n_regions": len(split),
        "width": described.width,
        "cell_types": list(described.cell_types),
        "n_factors": 0 if described.context is None else len(described.context.factors),
        "target_semantics": "binary_peak_mask",
        "num_output_classes": 1,
        "splits": {name: int((split == code).sum()) for code, name in enumerate(SPLITS)},
    }
    if fitted.track is not None:
        contract["n_tokens"] = fitted.track.shape[2]
    record = make_record(params, fitted.report, contract=contract, model=store_contextual_model(described))
    column = pd.Series(
        pd.Categorical.from_codes(split, categories=list(SPLITS)), index=getattr(adata, f"{regions.axis}_names")
    )
    matrices = dict(tokens)
    if fitted.track is not None:
        matrices[f"{key}_track"] = expit(fitted.track).astype(np.float32)
    regions.write(
        adata,
        columns={f"{key}_split": column},
        matrices=matrices,
        layers=prediction_layers(key, fitted.logits),
        uns={key: record},
    )


def prediction_layers(key: str, logits: np.ndarray) -> dict[str, np.ndarray]:
    """Layers of (cell types, regions) from log-odds of (regions, cell types)."""
    turned = np.ascontiguousarray(logits.T, dtype=np.float32)
    return {logit_layer(key): turned, probability_layer(key): expit(turned)}


def read_predictions(adata: AnnData, regions: GenomeAxis, key: str, maker: str) -> np.ndarray:
    """Log-odds (regions, cell types), float32.

    Raises
    ------
    KeyError
        If there are none.
    """
    name = logit_layer(key)
    if name not in adata.layers:
        raise KeyError(
            f"adata.layers has no {name!r}: run {maker}(adata) first, or pass its key_added; layers: "
            f"{[str(layer) for layer in adata.layers]}."
        )
    values = regions.signal(adata, name)
    return np.ascontiguousarray(values.take(np.arange(values.shape[0])).T, dtype=np.float32)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.contextual_data import read_binary_labels
from diffbio_sc._anndata.contextual_model import DEFAULT_KEY
from diffbio_sc._anndata.contextual_results import read_predictions
from diffbio_sc._anndata.genome_axis import GenomeAxis
from diffbio_sc._anndata.records import read_record
from diffbio_sc._anndata.region_axis import read_region_axis
from diffbio_sc._anndata.tables import in_memory, read_column
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData

_MAKER = "dbio.tl.contextual"
_REPORTED = {"validation": "val"}
_ORDER = {"part": ("start", "refined", "averaged", "floor"), "split": ("train", "val", "test")}


def contextual(
    adata: AnnData,
    *,
    kind: Literal["regions", "cell_types", "metrics"] = "regions",
    layer: str | None = None,
    key: str = DEFAULT_KEY,
    axis: Literal["var", "obs"] | None = None,
) -> pd.DataFrame:
    """Predictions of the contextual sequence model as tidy tables, and how good they are.

    Parameters
    ----------
    adata
        Object with predictions (see :func:`diffbio_sc.tl.contextual` and :func:`diffbio_sc.tl.contextual_predict`).
    kind
        Which table.
    layer
        Layer with the labels; default that of the training.
    key
        The ``key_added`` of the predictions.
    axis
        Axis with the regions, if both tables have the columns.

    Returns
    -------
    - ``"regions"``: a row for each region and cell type with ``region``, ``chrom``, ``start``, ``end``, ``cell_type``,
      ``logit``, ``probability`` and, where known, ``label`` and ``split``
    - ``"cell_types"``: a row for each split and cell type with ``n`` known labels, the share that is ``active``,
      ``auroc``, ``auprc`` and ``auroc_variable``, of the regions whose labels differ between cell types. NaN where all
      labels are alike.
    - ``"metrics"``: a row for each ``part`` of the model (``start``, ``refined``, ``averaged`` and the ``floor`` that
      they are held against, a logistic regression on words of seven bases), split and metric with its ``value``, as
      the training reported them, of cell types with expression if that was used

    Raises
    ------
    KeyError
        If there are no predictions, or no report.
    ValueError
        If ``kind`` is none of the three, or labels are not 0, 1 or NaN.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual(adata, refine=False, average=False)
    >>> dbio.get.contextual(adata, kind="cell_types")["auroc"].between(0, 1).all().item()
    True
    """
    check_options(contextual, locals())
    kinds = ("regions", "cell_types", "metrics")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {kinds}, found {kind!r}.")
    if kind == "metrics":
        return _metrics(read_record(adata, key, "report", _MAKER)["report"], key)
    regions = read_region_axis(adata, axis=axis)
    logits = read_predictions(adata, regions, key, _MAKER)
    labels = _labels(adata, regions, layer, key)
    return (
        _regions(adata, regions, logits, labels, key)
        if kind == "regions"
        else _cell_types(adata, regions, logits, labels, key)
    )


def _labels(adata: AnnData, regions: GenomeAxis, layer: str | None, key: str) -> np.ndarray | None:
    record = in_memory(adata.uns.get(key))
    params = record.get("params", {}) if hasattr(record, "get") else {}
    track = params.get("track")
    if layer is None and track is not None and str(track) in getattr(adata, f"{regions.axis}m"):
        values = np.asarray(getattr(adata, f"{regions.axis}m")[str(track)], np.float32)
        known = ~np.isnan(values)
        return np.where(known.any(axis=2), np.where(known, values, 0).max(axis=2), np.nan)
    if layer is None and not params:  # predicted here, trained elsewhere: .X may mean something else
        return None
    return read_binary_labels(adata, regions, layer if layer is not None else params.get("layer"))


def _split(adata: AnnData, regions: GenomeAxis, key: str) -> pd.Series | None:
    table = getattr(adata, regions.axis)
    return read_column(table, f"{key}_split") if f"{key}_split" in table else None


def _regions(adata, regions: GenomeAxis, logits: np.ndarray, labels: np.ndarray | None, key: str) -> pd.DataFrame:
    from scipy.special import expit

    n_regions, n_cells = logits.shape
    cells = [str(name) for name in regions.track_names(adata)]
    places = np.repeat(np.arange(n_regions), n_cells)
    table = regions.table.iloc[places].reset_index(drop=True)
    table.insert(0, "region", pd.Index(regions.names)[places])
    table["cell_type"] = pd.Categorical.from_codes(np.tile(np.arange(n_cells), n_regions), cells)
    table["logit"] = logits.ravel()
    table["probability"] = expit(logits).ravel()
    if labels is not None:
        table["label"] = labels.ravel()
    split = _split(adata, regions, key)
    if split is not None:
        table["split"] = split.to_numpy()[places]
        table["split"] = table["split"].astype(split.dtype)
    return table


def _cell_types(adata, regions: GenomeAxis, logits: np.ndarray, labels: np.ndarray | None, key: str) -> pd.DataFrame:
    if labels is None:
        raise ValueError("these predictions have no labels to be held against: pass layer=..., the layer with labels.")
    split = _split(adata, regions, key)
    splits = ["all"] if split is None else [name for name in split.cat.categories if (split == name).any()]
    cells = [str(name) for name in regions.track_names(adata)]
    low, high = np.nanmin(labels, axis=1, initial=1), np.nanmax(labels, axis=1, initial=0)
    variable = low < high
    rows = []
    for name in splits:
        mine = np.ones(len(labels), bool) if split is None else (split == name).to_numpy()
        for column, cell in enumerate(cells):
            known = mine & ~np.isnan(labels[:, column])
            truth, score = labels[known, column], logits[known, column]
            rows.append(
                {
                    "split": name,
                    "cell_type": cell,
                    "n": int(known.sum()),
                    "active": float(truth.mean()) if len(truth) else np.nan,
                    "auroc": _auroc(truth, score),
                    "auprc": _auprc(truth, score),
                    "auroc_variable": _auroc(truth[variable[known]], score[variable[known]]),
                }
            )
    table = pd.DataFrame(rows)
    return table.assign(
        split=pd.Categorical(table["split"], splits), cell_type=pd.Categorical(table["cell_type"], cells)
    )


def _auroc(truth: np.ndarray, score: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, score)) if _both(truth) else np.nan


def _auprc(truth: np.ndarray, score: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, score)) if _both(truth) else np.nan


def _both(truth: np.ndarray) -> bool:
    return bool(len(truth)) and bool(truth.min() < truth.max())


def _metrics(report: Any, key: str) -> pd.DataFrame:
    found = report.get("metrics", {}) if hasattr(report, "get") else {}
    rows = [
        {
            "part": str(part),
            "split": _REPORTED.get(str(split), str(split)),
            "metric": str(metric),
            "value": float(value),
        }
        for part, splits in found.items()
        for split, metrics in splits.items()
        for metric, value in metrics.items()
        if np.ndim(value) == 0
    ]
    if not rows:
        raise KeyError(f"adata.uns[{key!r}]['report'] has no metrics.")
    return pd.DataFrame(sorted(rows, key=_place))


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    """Where a row stands, whatever the order of the report: a file sorts what it stores by name."""
    named = [(known.index(row[key]) if row[key] in known else len(known), row[key]) for key, known in _ORDER.items()]
    return *named, row["metric"]

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from diffbio_sc._anndata import make_record
from diffbio_sc._anndata.modalities import require_object
from diffbio_sc._anndata.multiomics_model import read_model_input, read_multiomics_model
from diffbio_sc._anndata.multiomics_results import check_embedding_key, write_embedding
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def multiomics_encode(
    mdata: MuData | AnnData,
    fitted: MuData | AnnData | Mapping[str, Any],
    *,
    batch_key: str | None = None,
    unseen_batch: Literal["error", "average"] = "error",
    layers: str | Mapping[str, str | None] | None = None,
    key: str = "multiomics_vae",
    key_added: str = "X_multiomics_vae",
    copy: bool = False,
) -> MuData | AnnData | None:
    """Map cells into the embedding of a fitted model, without changing the model.

    Parameters
    ----------
    mdata
        Cells to map, with any of the modalities of the model. Features are found by name; up to half of those of a
        modality may be missing and are taken as zero, with a warning.
    fitted
        What :func:`~diffbio_sc.tl.multiomics_vae` was run on, or an AnnData that holds its record alone, or the record.
    batch_key
        Column with the batches, named as in the model; by default the column that the model was fitted with.
    unseen_batch
        What to do with cells from a batch that the model does not know: ``"error"`` refuses them, ``"average"`` gives
        them the mean result over the batches that it knows.
    layers
        Layer with the counts, by modality or one name for all; by default the layers of the fit, ``{}`` takes ``X``.
    key
        Key of the record in ``fitted.uns``.
    key_added
        Key of the embeddings, as in :func:`~diffbio_sc.tl.multiomics_vae`.
    copy
        Return a copy instead of writing into ``mdata``.

    Returns
    -------
    None, or the copy, with the fields of :func:`~diffbio_sc.tl.multiomics_vae`: ``.obsm["X_multiomics_vae"]``, its
    variance, ``.obs["multiomics_vae_weight_<modality>"]`` and ``.uns["multiomics_vae"]``. ``report`` and
    ``model`` of the record are those of the fit, so that :func:`~diffbio_sc.tl.multiomics_impute` and
    :func:`~diffbio_sc.tl.multiomics_score` work on the new cells.

    Raises
    ------
    KeyError
        If there is no model, layer or column.
    ValueError
        If the cells do not fit the model: none of its modalities, fewer than half of the features of one, an unknown
        batch, or values that are not counts. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> mdata = dbio.datasets.simulate_multiomics()
    >>> reference, query = mdata[:300].copy(), mdata[300:].copy()
    >>> dbio.tl.multiomics_vae(reference, max_epochs=0)
    >>> dbio.tl.multiomics_encode(query, reference)
    >>> query.obsm["X_multiomics_vae"].shape[0]
    100
    """
    from diffbio_sc.engines import multiomics_cells

    check_options(multiomics_encode, locals())
    require_object(mdata)
    check_embedding_key(mdata, key_added)
    model = read_multiomics_model(fitted, key=key)
    cells = read_model_input(mdata, model, layers=layers, batch_key=batch_key, unseen_batch=unseen_batch)
    read = cells.modalities
    encoding = multiomics_cells.encode(model.operator, read.matrices, read.present, cells.batch)
    params = {
        "modalities": model.modalities,
        "likelihoods": model.likelihoods,
        "batch_key": batch_key or model.batch_key,
        "unseen_batch": unseen_batch,
        "layers": layers,
        "key_added": key_added,
    }
    record = make_record(params, model.record.get("report", {}), n_cells=mdata.n_obs)
    if copy:
        mdata = mdata.copy()
    write_embedding(
        mdata,
        model.modalities,
        encoding,
        {**record, "model": model.record["model"]},
        key_added=key_added,
    )
    return mdata if copy else None

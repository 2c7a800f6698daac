from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffbio_sc._anndata import make_record
from diffbio_sc._anndata.cell_batches import read_batches
from diffbio_sc._anndata.modalities import read_modalities, require_object
from diffbio_sc._anndata.multiomics_model import store_multiomics_model
from diffbio_sc._anndata.multiomics_results import check_embedding_key, write_embedding
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

FUSIONS = ("poe", "moe", "mean")
MODALITY_WEIGHTS = ("equal", "learnable", "gradnorm")
_MANY_CELLS = 1000
_MANY_FEATURES, _SAMPLED = 20_000, 2048  # above the first the multinomial of peaks is estimated from the second
_SUBSET_RATE = 0.3


def multiomics_vae(
    mdata: MuData | AnnData,
    *,
    modalities: Sequence[str] | None = None,
    likelihoods: str | Mapping[str, str] = "auto",
    n_latent: int | None = None,
    fusion: Literal["poe", "moe", "mean"] = "poe",
    modality_weights: Literal["equal", "learnable", "gradnorm"] = "equal",
    batch_key: str | None = None,
    layers: str | Mapping[str, str] | None = None,
    max_epochs: int | None = 0,
    rng: int | np.random.Generator | None = 0,
    key_added: str = "X_multiomics_vae",
    copy: bool = False,
) -> MuData | AnnData | None:
    """Embed cells by all their modalities together.

    A variational autoencoder with a likelihood for each kind of data. What each modality says of a cell is combined in
    proportion to what it knows, a product of experts :cite:p:`Wu2018`; modalities that a cell lacks are left out
    exactly, without padding. Its parameters are those of a factor analysis in closed form; ``max_epochs=None`` trains
    them from there. The operator behind this is
    :class:`~diffbio_sc.operators.multiomics.DifferentiableMultiOmicsVAE`.

    Parameters
    ----------
    mdata
        MuData whose modalities may have different cells, in any order; or AnnData whose features are told apart by
        ``.var["feature_types"]``. Raw counts, in memory, backed or lazy (dask); those that are not in memory are read
        once, into temporary files, and trained on in parts. In an AnnData, a cell without any count in a modality lacks
        it.
    modalities
        Modalities to use; default all.
    likelihoods
        ``"auto"``: chosen from the values and names, and logged. Or a name for all, or a dict for some of them, of
        ``"negative_binomial"``, ``"zero_inflated_negative_binomial"``, ``"poisson"``, ``"multinomial"``,
        ``"bernoulli"`` (accessible or not), ``"protein_mixture"`` (background and foreground) and ``"gaussian"``
        (normalised values).
    n_latent
        Number of latent dimensions; default 20 below 1,000 cells, else 30, but at most half of the number of cells and
        of features.
    fusion
        How the modalities are combined: ``"poe"``, the product of experts; ``"moe"``, the mixture of the posteriors
        from each modality alone; or ``"mean"``, the average of one draw from each of those.
    modality_weights
        How the modalities are weighted in the loss. ``"equal"``: the evidence lower bound itself. ``"learnable"``: by a
        learned uncertainty of each :cite:p:`Kendall2018`. ``"gradnorm"``: so that all pull equally hard on the
        embedding :cite:p:`Chen2018`.
    batch_key
        Column of ``mdata.obs`` with batches, whose effects are kept out of the embedding, also where a batch lacks a
        modality: what the model leaves is taken off within clusters, as Harmony does :cite:p:`Korsunsky2019`. If only
        the modalities have the column, those are taken together.
    layers
        Layer with the counts, by modality or one name for all; default ``X``.
    max_epochs
        Largest number of epochs of training. Default 0: the factor analysis in closed form as it is, whose clusters
        are as good on the data measured and which imputes proteins as well. None trains until the loss of held-out
        cells no longer falls (at most 500 epochs): for a model of the counts, such as for
        :func:`~diffbio_sc.tl.multiomics_score` and for imputed chromatin, and for cells that lack modalities.
    rng
        Seed, generator, or None for fresh entropy. The same seed gives the same result bit for bit on the same machine.
    key_added
        Key of the embeddings. Without a leading ``X_`` it is the key of the record and the prefix of the columns.
    copy
        Return a copy instead of writing into ``mdata``.

    Returns
    -------
    None, or the copy, with these fields (for the default ``key_added``):

    `.obsm["X_multiomics_vae"]` : float32 (cells × latent)
        Posterior mean. Each axis is stretched, by the cube root of how precisely a cell with all modalities is known
        along it, so that neighbours are found by what the data tell clearly.
    `.obsm["X_multiomics_vae_var"]` : float32 (cells × latent)
        Posterior variance, on the same axes.
    `.obs["multiomics_vae_weight_<modality>"]` : float32
        Share of each modality in the embedding of the cell, 0 where it is missing; the prior has the rest.
    `mdata[<modality>].obsm["X_multiomics_vae"]` : float32
        Posterior mean from that modality alone, of its cells; missing for those without counts. Of an AnnData
        ``.obsm["X_multiomics_vae_<modality>"]``.
    `.uns["multiomics_vae"]` : dict
        ``params``, ``version``, ``report`` (history of the loss and its terms, converged, steps, seconds) and
        ``model``, the fitted model, which survives a file and with which
        :func:`~diffbio_sc.tl.multiomics_encode`, :func:`~diffbio_sc.tl.multiomics_impute` and
        :func:`~diffbio_sc.tl.multiomics_score` work.

    Raises
    ------
    KeyError
        If a modality, layer or column is missing.
    TypeError
        If the object is neither MuData nor AnnData.
    ValueError
        If values are not counts (or not finite), a cell has no modality, no cell has two modalities, each cell has a
        batch of its own, names are
        duplicated, there are fewer than 10 cells or a modality has one feature, or an argument is out of range. Nothing
        has been written then.

    Notes
    -----
    The model without the cells is saved as
    ``anndata.AnnData(uns={"multiomics_vae": mdata.uns["multiomics_vae"]}).write_h5ad(path)``.

    Examples
    --------
    >>> import scanpy as sc
    >>> import diffbio_sc as dbio
    >>> mdata = dbio.datasets.simulate_multiomics()
    >>> dbio.tl.multiomics_vae(mdata, max_epochs=5)
    >>> sc.pp.neighbors(mdata["rna"], use_rep="X_multiomics_vae")
    """
    check_options(multiomics_vae, locals(), n_latent="[1, inf)", max_epochs="[0, inf)")
    n_latent = None if n_latent is None else int(n_latent)
    max_epochs = None if max_epochs is None else int(max_epochs)
    require_object(mdata)
    check_embedding_key(mdata, key_added)
    seed = int(rng) if isinstance(rng, int | np.integer) and rng >= 0 else int(as_generator(rng).integers(2**31 - 1))
    read = read_modalities(mdata, modalities=modalities, likelihoods=likelihoods, layers=layers)
    cells = len(read.present)
    batch, batches = (None, []) if batch_key is None else read_batches(mdata, batch_key)
    if n_latent is None:
        n_latent = automatic_latent(cells, sum(len(names) for names in read.features))
    complete = bool(read.present.all())
    for name, number in zip(read.names, read.present.sum(0), strict=True):
        if number < cells:
            logger.info(f"{name}: in {int(number)} of {cells} cells.")

    from diffbio_sc.numerics.random_keys import streams
    from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
    from diffbio_sc.training.report import FitReport

    config = MultiOmicsVAEConfig(
        modality_dims=tuple(len(names) for names in read.features),
        latent_dim=n_latent,
        modality_weight_mode="learnable" if modality_weights == "learnable" else "equal",
        use_gradnorm=modality_weights == "gradnorm",
        likelihoods=tuple(read.likelihoods),
        fusion=fusion,
        n_batches=max(len(batches), 1),
        subset_rate=0.0 if complete else _SUBSET_RATE,
        n_sampled=_SAMPLED if max(len(names) for names in read.features) > _MANY_FEATURES else 0,
    )
    operator = DifferentiableMultiOmicsVAE(config, rngs=streams(seed))
    if max_epochs == 0:
        started = time.perf_counter()
        operator.initialize(read.matrices, present=read.present, batch=batch, rng=seed)
        report = FitReport({}, True, 0, time.perf_counter() - started)
    else:
        report = operator.fit_matrices(
            read.matrices, present=read.present, batch=batch, max_epochs=max_epochs, rng=seed
        )
    encoding = operator.embed(read.matrices, present=read.present, batch=batch)
    layer_of = dict.fromkeys(read.names, layers) if isinstance(layers, str) else dict(layers or {})
    record = make_record(
        {
            "modalities": read.names,
            "likelihoods": read.likelihoods,
            "n_latent": n_latent,
            "fusion": fusion,
            "modality_weights": modality_weights,
            "batch_key": batch_key,
            "layers": {name: layer for name, layer in layer_of.items() if layer},
            "max_epochs": max_epochs,
            "rng": rng,
            "key_added": key_added,
        },
        report,
        n_cells=cells,
        model=store_multiomics_model(
            operator,
            read,
            batches=batches,
            batch_key=batch_key,
            layers={name: layer for name, layer in layer_of.items() if layer},
        ),
    )
    if copy:
        mdata = mdata.copy()
    write_embedding(mdata, read.names, encoding, record, key_added=key_added)
    return mdata if copy else None


def automatic_latent(cells: int, features: int) -> int:
    """Latent dimensions for so many cells and features."""
    return max(min(20 if cells < _MANY_CELLS else 30, cells // 2, features // 2), 1)

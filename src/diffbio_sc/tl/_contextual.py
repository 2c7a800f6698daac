from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._anndata.contextual_model import DEFAULT_KEY
from diffbio_sc._anndata.contextual_results import write_contextual
from diffbio_sc._anndata.results import check_key
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator
from diffbio_sc.tl._contextual_input import read_contextual_input
from diffbio_sc.tl._contextual_run import fit_contextual

if TYPE_CHECKING:
    from anndata import AnnData


def contextual(
    adata: AnnData,
    *,
    fasta: Any = None,
    sequences: str = "dna",
    tf_context: str | None = "tf_context",
    track: str | None = None,
    contacts: str | None = None,
    contacts_as: Literal["guidance", "input"] = "guidance",
    mode: Literal["auto", "sequence_only", "tf_context", "tf_plus_chromatin"] = "auto",
    neighbourhood: bool | str = False,
    motifs: Mapping[str, np.ndarray] | None = None,
    split: str | Mapping[str, Any] | None = None,
    layer: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    refine: bool = True,
    average: bool = True,
    max_epochs: int | None = None,
    key_added: str = DEFAULT_KEY,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Learn in which cell types a region is active from its sequence, and predict it.

    The model starts from a ridge regression on counts of short words and on motifs, solved in closed form with
    penalties from folds of chromosomes. Networks are trained on what that leaves, their output at zero, and are kept
    only where held-out chromosomes gain; so the result is no worse there than the linear model. Expression of
    transcription factors makes predictions for cell types without chromatin data possible. With ``track`` regions are
    windows with labels along them, and the attention model
    (:class:`~diffbio_sc.operators.epigenomics.ContextualEpigenomicsOperator`) is trained, which contacts can guide
    :cite:p:`Gao2024`.

    Parameters
    ----------
    adata
        Object of cell types (or pseudobulks) by regions, either way round; the regions' table has ``chrom`` (or
        ``chr``), ``start`` and ``end``. ``.X`` holds 1 where a region is active, 0 where not, and NaN where that is not
        known. A cell type that is NaN in all regions is predicted from its expression.
    fasta
        Genome to read the sequences from, as :func:`diffbio_sc.pp.sequences` takes it; they are stored under
        ``sequences``.
    sequences
        Key of the sequences that :func:`diffbio_sc.pp.sequences` stored.
    tf_context
        Key of the expression that :func:`diffbio_sc.pp.tf_context` stored, or of an array whose columns
        ``.uns["tf_names"]`` names. None: not used.
    track
        Key of labels along the regions (regions, cell types, tokens) in ``.varm``, 0, 1 or NaN. ``layer`` is not read
        then: a region is active where one of its tokens is.
    contacts
        Key of a contact map of each region (regions, tokens, tokens) in ``.varm``, values between 0 and 1. Needs
        ``track``. Half a map and NaN (no contact known) are accepted.
    contacts_as
        ``"guidance"``: contacts are a second thing to learn in training, and predictions need none. ``"input"``: they
        say which tokens attend to each other, and predictions need them too.
    mode
        Inputs that the model uses. ``"auto"`` takes the richest that are there, and says which.
    neighbourhood
        Whether the model may also look at the other regions of the set: their distance, number and predictions. Or a
        column with the kind of each region, to tell these apart. It then measures how this set was chosen too, and is
        only of use for sets chosen in the same way.
    motifs
        Log-odds matrices (positions, 4) by name; the best score of each on both strands joins the linear model, beside
        those of motifs that are grown from the training regions.
    split
        Column with ``"train"``, ``"val"`` and ``"test"`` of each region (missing: left out), or a dict such as
        ``{"val": ["chr10"], "test": ["chr8", "chr9"]}``. Default: the column ``"split"`` if there is one, else the
        smallest chromosomes that hold a tenth of the regions each.
    layer
        Layer with the labels; default ``.X``.
    axis
        Axis with the regions, if both tables have the columns.
    refine
        Whether to train networks.
    average
        Whether to average with a logistic regression on longer words.
    max_epochs
        Most epochs of each network; default by the number of regions.
    key_added
        Key of the record in ``.uns``; results of other keys begin with it.
    rng
        Seed, generator, or None for fresh entropy.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields:

    `.layers["contextual_logit"]`, `.layers["contextual_prob"]` : float32
        Log-odds and probability of activity, of all regions and cell types.
    `.var["contextual_split"]` : category
        Split of each region. In ``.obs`` if regions lie there.
    `.varm["contextual_track"]` : float32 (regions, cell types, tokens)
        With ``track``, probabilities along the regions.
    `.uns["contextual"]` : dict
        ``params``, ``version``, ``report`` (``metrics`` of each part of the model and split, ``kept`` and ``reason``:
        what was kept and why, ``history``, ``converged``, ``seconds``), ``contract`` (what was read), and ``model``,
        the fitted model, which survives files: :func:`diffbio_sc.tl.contextual_predict` and
        :func:`diffbio_sc.tl.attributions` work with it.

    Raises
    ------
    KeyError
        If a key, column, layer, chromosome or the axis of regions is missing.
    TypeError
        If an argument is of another kind.
    ValueError
        If labels are not 0, 1 or NaN, a split is empty, shapes do not fit, names occur twice, a cell type has neither
        labels nor expression, or an argument is out of range. Nothing has been written then.

    Warns
    -----
    UserWarning
        If regions of different splits overlap or regions occur twice, a cell type has one label in all regions, the
        expression tells no cell types apart, or names of regions are not where their columns say.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual(adata, refine=False, average=False)
    >>> adata.layers["contextual_prob"].shape
    (6, 600)
    """
    check_options(contextual, locals(), max_epochs="[1, inf)")
    max_epochs = None if max_epochs is None else int(max_epochs)
    began = time.perf_counter()
    params = {name: value for name, value in locals().items() if name not in ("adata", "began", "motifs", "copy")}
    _check_arguments(sequences, neighbourhood, track, motifs)
    generator = as_generator(rng)
    data = read_contextual_input(
        adata,
        fasta=fasta,
        sequences=sequences,
        tf_context=tf_context,
        track=track,
        contacts=contacts,
        mode=mode,
        neighbourhood=neighbourhood,
        split=split,
        layer=layer,
        axis=axis,
    )
    if mode == "auto":
        logger.info(f"Mode {data.mode!r}: the richest that the inputs allow.")
    fitted = fit_contextual(
        data,
        motifs=motifs,
        refine=refine,
        average=average,
        max_epochs=max_epochs,
        contacts_as=contacts_as,
        rng=generator,
    )
    params["fasta"] = None if fasta is None else (fasta if isinstance(fasta, str) else type(fasta).__name__)
    params |= {"mode": data.mode, "axis": data.regions.axis, "split": data.split_source, "copy": None}
    params["motifs"] = None if motifs is None else list(motifs)
    fitted.report["seconds"] = time.perf_counter() - began
    if copy:
        adata = adata.copy()
    write_contextual(
        adata,
        data.regions,
        fitted,
        key=key_added,
        params=params,
        split=data.split,
        tokens={} if fasta is None else {sequences: data.tokens},
    )
    return adata if copy else None


def _check_arguments(sequences, neighbourhood, track, motifs) -> None:
    check_key(sequences, "sequences")
    if track is not None and (neighbourhood is not False or motifs is not None):
        raise ValueError(
            "neighbourhood and motifs are of the model of whole regions: leave them out, or leave track out."
        )
    for name, matrix in (motifs or {}).items():
        shape = np.shape(matrix)
        if len(shape) != 2 or shape[1] != 4 or not np.isfinite(np.asarray(matrix, np.float64)).all():
            raise ValueError(
                f"motifs must be finite log-odds of shape (positions, 4), found shape {shape} of {name!r}."
            )

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._anndata.attributions import DEFAULT_ATTRIBUTIONS, choose_cell_types, choose_regions
from diffbio_sc._anndata.contextual_data import read_region_tokens
from diffbio_sc._anndata.contextual_model import DEFAULT_KEY, ContextualModel, read_contextual_model
from diffbio_sc._anndata.region_axis import read_region_axis
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._checks import name_heads
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator
from diffbio_sc.tl._attributions_run import Question, ask_of_bases, ask_of_factors, context_of
from diffbio_sc.tl._contextual_input import read_input_maps

if TYPE_CHECKING:
    from anndata import AnnData

Method = Literal["ism", "input_x_gradient", "integrated_gradients", "tf"]

_METHODS = ("ism", "input_x_gradient", "integrated_gradients", "tf")
_MOST_REGIONS = 5000  # taken unasked


def attributions(
    adata: AnnData,
    *,
    regions: str | Sequence[Any] | np.ndarray | None = None,
    cell_types: str | Sequence[str] | None = None,
    method: Method = "ism",
    n_references: int = 10,
    steps: int = 20,
    model: AnnData | ContextualModel | str | os.PathLike[str] | None = None,
    sequences: str = "dna",
    tf_context: str | None = "tf_context",
    contacts: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    key: str = DEFAULT_KEY,
    key_added: str = DEFAULT_ATTRIBUTIONS,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Ask a trained sequence model what each base, or each transcription factor, adds to a prediction.

    Scores are changes of the log-odds that a region is active; of windows, of the logarithm of the odds summed over
    their tokens. Those of bases are hypothetical contributions: of each letter at each position, whether it stands
    there or not. Of the letters that do stand there they are the contributions that :func:`diffbio_sc.pl.logo` draws;
    TF-MoDISco takes both (:func:`diffbio_sc.get.attribution_arrays`).

    Parameters
    ----------
    adata
        Object with regions and their sequences.
    regions
        Names of regions, their positions, or a mask of shape (regions,). Default: all, of at most 5,000.
    cell_types
        Cell types; default all.
    method
        ``"ism"``, in-silico mutagenesis: every base is substituted by every letter, and the prediction with a letter is
        compared with the mean over the four. ``"input_x_gradient"``: the gradient by each letter, less its mean.
        ``"integrated_gradients"``: gradients along lines from shuffled sequences with the same pairs of letters
        :cite:p:`Sundararajan2017`; contributions sum to the prediction less that of the references. ``"tf"``: how the
        prediction from expression changes if a factor is expressed as in the mean of the trained cell types.
    n_references, steps
        Shuffled sequences for each region, and points of each line, of integrated gradients.
    model
        As in :func:`diffbio_sc.tl.contextual_predict`. Default: that of ``adata``.
    sequences, tf_context, contacts
        Keys, as in :func:`diffbio_sc.tl.contextual_predict`. Expression is read for ``"tf"`` and for cell types that
        the model does not know, which have no gradients.
    axis
        Axis with the regions, if both tables have the columns.
    key
        Key of the model, of an AnnData.
    key_added
        Key of the result.
    rng
        Seed, generator, or None, of the shuffles.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with this field:

    `.uns["attributions"]` : dict
        ``regions``, ``chrom`` and ``start`` of the chosen regions (the first base of the window), ``cell_types``,
        ``tokens`` (regions, width) int8, and ``scores`` (regions, cell types, width, 4) float32, or with ``"tf"``
        ``factors`` and ``factor_scores`` (regions, cell types, factors) float32; ``params``, ``version`` and
        ``report``.

    Raises
    ------
    KeyError
        If there is no model, or no such key, region or cell type.
    TypeError
        If an argument is of another kind.
    ValueError
        If ``method`` is none of the four, the model was trained with neighbourhood (a prediction then depends on more
        than the sequence) or, for ``"tf"``, without expression, or sequences have another width.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual(adata, refine=False, average=False)
    >>> dbio.tl.attributions(adata, regions=adata.var_names[:5])
    >>> adata.uns["attributions"]["scores"].shape
    (5, 6, 100, 4)
    """
    check_options(attributions, locals(), n_references="[1, inf)", steps="[1, inf)")
    n_references, steps = int(n_references), int(steps)
    began = time.perf_counter()
    generator = as_generator(rng)
    axis_of_regions = read_region_axis(adata, axis=axis)
    fitted = read_contextual_model(adata if model is None else model, key=key)
    if fitted.groups is not None:
        raise ValueError(
            "the model was trained with neighbourhood: what it predicts of a region depends on other regions too. "
            "Train one without for attributions."
        )
    chosen = choose_regions(axis_of_regions, regions, most=_MOST_REGIONS)
    names = choose_cell_types(cell_types, [str(name) for name in axis_of_regions.track_names(adata)])
    tokens = read_region_tokens(adata, axis_of_regions, sequences, None)[chosen]
    if tokens.shape[1] != fitted.width:
        raise ValueError(
            f"the model was trained with sequences of {fitted.width:,} bases, found {tokens.shape[1]:,}: read them "
            f"with dbio.pp.sequences(adata, genome, width={fitted.width})."
        )
    new = [name for name in names if name not in fitted.cell_types]
    if new and method in ("input_x_gradient", "integrated_gradients"):
        raise ValueError(
            f"the model was not trained with cell types {name_heads(new)}, of which there are no gradients: use "
            "method='ism', or leave them out."
        )
    asked = names if method == "tf" else new
    context = context_of(adata, axis_of_regions, fitted, asked, tf_context) if asked else None
    maps = read_input_maps(adata, axis_of_regions, fitted, contacts)
    question = Question(fitted, names, context, None if maps is None else maps[chosen])
    found: dict[str, Any]
    if method == "tf":
        assert context is not None
        found = {"factors": context.factors, "factor_scores": ask_of_factors(question, tokens)}
    else:
        found = {"scores": ask_of_bases(question, tokens, method, n_references, steps, generator)}
    width = tokens.shape[1]
    middle = (axis_of_regions.start[chosen] + axis_of_regions.end[chosen]) // 2
    record = make_record(
        {
            "method": method,
            "n_references": n_references if method == "integrated_gradients" else None,
            "steps": steps if method == "integrated_gradients" else None,
            "key": key,
            "sequences": sequences,
            "axis": axis_of_regions.axis,
            "rng": rng,
        },
        {"n_regions": len(chosen), "n_cell_types": len(names), "seconds": time.perf_counter() - began},
        regions=[str(axis_of_regions.names[row]) for row in chosen],
        chrom=[axis_of_regions.chromosomes[code] for code in axis_of_regions.code[chosen]],
        start=middle - width // 2,
        cell_types=names,
        tokens=tokens,
        **found,
    )
    logger.info(f"Attributions ({method}) of {len(chosen):,} regions in {len(names)} cell types.")
    if copy:
        adata = adata.copy()
    write_results(adata, uns={key_added: record})
    return adata if copy else None

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc._progress import progress
from diffbio_sc._random import as_generator
from diffbio_sc.tl._contextual_input import ContextualInput, read_contextual_input
from diffbio_sc.tl._contextual_run import fit_contextual

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULT_ABLATION = "contextual_ablation"


def contextual_ablation(
    adata: AnnData,
    *,
    fasta: Any = None,
    sequences: str = "dna",
    tf_context: str = "tf_context",
    track: str | None = None,
    contacts: str | None = None,
    contacts_as: Literal["guidance", "input"] = "guidance",
    neighbourhood: bool | str = False,
    motifs: Mapping[str, np.ndarray] | None = None,
    split: str | Mapping[str, Any] | None = None,
    layer: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    refine: bool = True,
    average: bool = True,
    max_epochs: int | None = None,
    n_seeds: int = 3,
    level: float = 0.95,
    n_draws: int = 500,
    key_added: str = DEFAULT_ABLATION,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Ask which inputs a sequence model gains by: train it with and without them, and compare on held-out regions.

    The variants are ``"sequence_only"``, ``"tf_context"``, the control ``"random_context"`` (a random code of each cell
    type in place of its expression, so that a gain over it is what the expression tells beyond which cell type it is)
    and, with ``contacts``, ``"tf_plus_chromatin"``. Each is trained with several seeds and scored on the same regions.
    Differences come with intervals from drawing blocks of the genome and seeds anew, the same for both sides; an order
    is claimed only where the interval leaves 0 out.

    Parameters
    ----------
    adata, fasta, sequences, tf_context, track, contacts, contacts_as, neighbourhood, motifs
        As in :func:`diffbio_sc.tl.contextual`.
    split, layer, axis, refine, average, max_epochs
        As there.
    n_seeds
        Times that each variant is trained.
    level
        Share of draws that an interval holds.
    n_draws
        Number of draws.
    key_added
        Key of the result.
    rng
        Seed or generator.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with this field:

    `.uns["contextual_ablation"]` : dict
        ``metrics``, a table of ``variant``, ``seed``, ``metric`` and ``value``; ``differences``, a table of
        ``variant``, ``against``, ``metric``, ``difference``, ``low``, ``high`` and ``claim`` (``"higher"``, ``"lower"``
        or ``"not shown"``); ``params``, ``version`` and ``report``, with ``summary``, sentences to read.

    Raises
    ------
    KeyError, TypeError, ValueError
        As :func:`diffbio_sc.tl.contextual`; and ValueError if the expression tells no cell types apart, no region is
        left to test with, or a number is out of range.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual_ablation(adata, n_seeds=1, refine=False, average=False)
    >>> adata.uns["contextual_ablation"]["differences"]["claim"].isin(["higher", "lower", "not shown"]).all().item()
    True
    """
    check_options(
        contextual_ablation, locals(), max_epochs="[1, inf)", n_seeds="[1, inf)", level="(0, 1)", n_draws="[20, inf)"
    )
    n_seeds, n_draws = int(n_seeds), int(n_draws)
    max_epochs = None if max_epochs is None else int(max_epochs)
    began = time.perf_counter()
    generator = as_generator(rng)
    data = read_contextual_input(
        adata,
        fasta=fasta,
        sequences=sequences,
        tf_context=tf_context,
        track=track,
        contacts=contacts,
        mode="tf_context" if contacts is None else "tf_plus_chromatin",
        neighbourhood=neighbourhood,
        split=split,
        layer=layer,
        axis=axis,
    )
    if data.mode == "sequence_only":
        raise ValueError("tf_context tells no cell types apart: there is nothing to compare.")
    if not data.labelled.all():
        names = [name for name, has in zip(data.cell_types, data.labelled, strict=True) if not has]
        raise ValueError(f"cell types {names} have no label and cannot be scored: leave them out.")
    held_out = np.flatnonzero(data.split == 2)
    if not len(held_out):
        raise ValueError(
            "no region is left to test with: training stops by the validation split, and scores there are too good. "
            "Give split a 'test' of its own."
        )
    variants = ["sequence_only", "random_context", "tf_context"] + (["tf_plus_chromatin"] if contacts else [])
    seeds = generator.integers(0, 2**31 - 1, n_seeds)
    options: dict[str, Any] = {
        "motifs": motifs,
        "refine": refine,
        "average": average,
        "max_epochs": max_epochs,
        "contacts_as": contacts_as,
    }
    logits = np.empty((len(variants), n_seeds, len(held_out), len(data.cell_types)), np.float32)
    runs = [(place, seed) for place in range(len(variants)) for seed in range(n_seeds)]
    for place, seed in progress(runs, "Variants", total=len(runs)):
        fitted = fit_contextual(
            _variant(data, variants[place]),
            random_context=variants[place] == "random_context",
            rng=np.random.default_rng(seeds[seed]),
            **options,
        )
        logits[place, seed] = fitted.logits[held_out]
    metrics, differences, summary = _compare(data, variants, logits, held_out, level, n_draws, generator)
    for sentence in summary:
        logger.info(sentence)
    record = make_record(
        {
            "n_seeds": n_seeds,
            "level": level,
            "n_draws": n_draws,
            "split": data.split_source,
            "refine": refine,
            "average": average,
            "max_epochs": max_epochs,
            "rng": rng,
        },
        {"summary": summary, "n_regions": len(held_out), "converged": True, "seconds": time.perf_counter() - began},
        variants=variants,
        metrics=metrics,
        differences=differences,
    )
    if copy:
        adata = adata.copy()
    write_results(adata, uns={key_added: record})
    return adata if copy else None


def _variant(data: ContextualInput, name: str) -> ContextualInput:
    """The same data with fewer inputs."""
    if name == "sequence_only":
        return data._replace(mode=name, context=None, contacts=None)
    if name == "tf_plus_chromatin":
        return data
    return data._replace(mode="tf_context", contacts=None)


def _compare(
    data: ContextualInput,
    variants: list[str],
    logits: np.ndarray,
    held_out: np.ndarray,
    level: float,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    from diffbio_sc.engines.contextual_ablation import METRICS, compare_variants, genome_blocks

    regions = data.regions
    blocks = genome_blocks(regions.code[held_out], regions.start[held_out])
    known = np.ones(len(data.cell_types), bool) if data.context is None else data.context.known
    found = compare_variants(logits[..., known], data.labels[held_out][:, known], blocks, n_draws=n_draws, rng=rng)
    metrics = pd.DataFrame(
        [
            {"variant": variant, "seed": seed, "metric": metric, "value": found.values[place, seed, column]}
            for place, variant in enumerate(variants)
            for seed in range(logits.shape[1])
            for column, metric in enumerate(METRICS)
        ]
    )
    rows, summary = [], []
    for other in range(len(variants)):
        for one in range(other + 1, len(variants)):
            values = found.difference(one, other, level)
            for metric, (mean, low, high) in zip(METRICS, values, strict=True):
                claim = "higher" if low > 0 else "lower" if high < 0 else "not shown"
                rows.append(
                    {
                        "variant": variants[one],
                        "against": variants[other],
                        "metric": metric,
                        "difference": mean,
                        "low": low,
                        "high": high,
                        "claim": claim,
                    }
                )
                told = f"is {claim} than" if claim != "not shown" else "is not shown to differ from"
                summary.append(
                    f"{metric} of {variants[one]} {told} that of {variants[other]}: {mean:+.4f}, "
                    f"{level:.0%} interval {low:+.4f} to {high:+.4f}."
                )
    return metrics, pd.DataFrame(rows), summary

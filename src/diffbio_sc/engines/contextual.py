"""Activity of regions in cell types from their sequence: a linear start in closed form, and what networks add to it.

The start is a ridge regression of all cell types on canonical k-mers, in the basis of their components
(:mod:`diffbio_sc.numerics.linear.ridge`), and on the best scores of motifs: those that are given, and those that grow
from the words of most weight (:mod:`diffbio_sc.numerics.sequence.motif_discovery`). Networks are trained on its
out-of-fold logits, with a head that starts at zero, and stopped by chromosomes that were held out. Their probabilities
are averaged with those of logistic regressions on longer and on spaced k-mers. Each step is kept only if the held-out
chromosomes say that it helps: the model is never worse there than the linear one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diffbio_sc._checks import counted, whole_number, whole_numbers
from diffbio_sc._logging import logger
from diffbio_sc._random import as_generator
from diffbio_sc._settings import settings
from diffbio_sc.engines.contextual_cells import CellCopies, choose_copies, context_codes, random_codes
from diffbio_sc.engines.contextual_folds import (
    TEST,
    TRAIN,
    UNLABELLED,
    VALIDATION,
    balanced_folds,
    choose_split,
    pieces,
)
from diffbio_sc.engines.contextual_model import (
    Columns,
    LinearPart,
    RegionModel,
    combine,
    count_table,
    network_logits,
    spaced_patterns,
)
from diffbio_sc.genome import region_set, sequences
from diffbio_sc.genome.region_set import RegionSet
from diffbio_sc.numerics.linear.design import Design
from diffbio_sc.numerics.linear.logistic import LogisticFit, choose_logistic, cross_entropy, fit_logistic
from diffbio_sc.numerics.linear.ridge import fit_ridge
from diffbio_sc.numerics.padding import round_up, zero_padded
from diffbio_sc.numerics.random_keys import streams
from diffbio_sc.numerics.ranking import ranking_measures
from diffbio_sc.numerics.sequence import kmers
from diffbio_sc.numerics.sequence.motif_discovery import distinct_words, grow_motifs
from diffbio_sc.numerics.sequence.motifs import check_motifs
from diffbio_sc.operators.epigenomics.region_network import RegionNetwork, training_loss, within_loss
from diffbio_sc.training import Adam, train

__all__ = ["RegionModel", "RegionSet", "fit_regions"]

# Penalties of the ridge, as shares of the number of regions.
_PENALTIES = 0.008 * 2.0 ** np.arange(10)
_LONGEST_KMER = 6
# Penalties that the search of the logistic regressions begins with.
_FLOOR_PENALTY, _SPACED_PENALTY = 3e-3, 3e-2
_FLOOR = (kmers.contiguous(7),)
# Motifs that are grown: from words of so many bases, so many beyond both ends, on a sample of regions.
_WORD, _FLANK, _GROWN_ON = 6, 6, 8000
_MOST_MOTIFS, _REGIONS_PER_MOTIF = 96, 100
# The networks: columns that they see, and their training.
_CHOSEN = 1024
_WIDTH_STEP = 32  # their further columns are filled up to a multiple, so that those of few more regions compile nothing
_BATCH, _RATE, _AVERAGE = 256, 1e-3, 0.99
_STEPS, _MOST_EPOCHS = 900, 20
_SHORTEST = 12


class _Problem(NamedTuple):
    """Checked input."""

    tokens: Int[np.ndarray, "n length"]
    labels: Float[np.ndarray, "n cells"]
    chromosome: Int[np.ndarray, " n"]
    split: Int[np.ndarray, " n"]
    main: Bool[np.ndarray, " cells"]
    context: Float[np.ndarray, "cells factors"] | None
    regions: RegionSet | None

    def rows(self, part: int) -> Int[np.ndarray, " rows"]:
        """Rows of a part of the split."""
        return np.flatnonzero(self.split == part)


class _Clock:
    """Seconds of CPU by step."""

    def __init__(self) -> None:
        self.began, self._last = time.perf_counter(), time.process_time()
        self.steps: dict[str, float] = {}

    def step(self, name: str) -> None:
        """Note a step that has just ended."""
        now = time.process_time()
        self.steps[name], self._last = now - self._last, now


def fit_regions(
    tokens: Int[np.ndarray, "n length"],
    labels: Float[np.ndarray, "n cells"],
    *,
    chromosome: Int[np.ndarray, " n"],
    split: Int[np.ndarray, " n"] | None = None,
    tf_context: Float[np.ndarray, "cells tfs"] | None = None,
    random_context: bool = False,
    neighbourhood: RegionSet | None = None,
    motifs: Mapping[str, Float[np.ndarray, "width 4"]] | None = None,
    refine: bool = True,
    average: bool = True,
    n_networks: int = 3,
    max_epochs: int | None = None,
    rng: int | np.random.Generator | None = 0,
    progress: bool = True,
    warn_constant: bool = True,
) -> RegionModel:
    """Fit the model.

    Parameters
    ----------
    tokens
        Sequences of one length, int8: A C G T N = 0 1 2 3 4.
    labels
        Activity of each region in each cell type: 0, 1, or NaN where it is not known.
    chromosome
        Code of each region's chromosome. Folds and held-out regions are whole chromosomes or, of fewer than five,
        contiguous blocks in the order given.
    split
        0 training, 1 validation, 2 test (only measured). Without validation some chromosomes of training are taken.
    tf_context
        Expression of transcription factors by cell type; a row of NaN for a cell type without any. Such cell types
        serve training as additional outputs and no measure of the report counts them.
    random_context
        Control: take a random code of each cell type instead of ``tf_context``.
    neighbourhood
        Where the regions lie. Given, the model also sees how far and how many the other regions of the set are and
        what is predicted for them; it then fits only sets of the same density. Default: the sequence alone.
    motifs
        Log-odds matrices by name; the best score on both strands of each becomes a column of the linear start, beside
        those of motifs that are grown from the training regions, one for each 100 of them and 96 at most.
    refine
        Whether to train networks on what the linear start leaves.
    average
        Whether to average with logistic regressions on longer and on spaced k-mers.
    n_networks
        Number of networks, each from another start, whose additions are averaged.
    max_epochs
        Most epochs of each network. Default: as many as make 900 steps, at most 20.
    rng
        Seed or generator.
    progress
        Whether to show a progress bar.
    warn_constant
        Whether to warn of cell types with labels of one kind alone.

    Returns
    -------
    The model. Its report says what was fitted, what was kept and why.

    Raises
    ------
    ValueError
        If an input does not fit; the message says which and what was found.

    Warns
    -----
    UserWarning
        If a cell type has labels of one kind alone in training.
    """
    clock = _Clock()
    generator = as_generator(rng)
    if max_epochs is not None:
        max_epochs = whole_number(max_epochs, "max_epochs")
    n_networks = whole_number(n_networks, "n_networks")
    problem = _checked(tokens, labels, chromosome, split, tf_context, neighbourhood, generator, warn_constant)
    matrices = check_motifs(motifs or {}, problem.tokens.shape[1])
    matrices |= _grow_motifs(problem, generator)
    clock.step("motifs")

    columns, further = _fit_columns(problem, matrices)
    start, penalties, out_of_fold = _fit_start(problem, further)
    logits = {"start": start.logits(problem.tokens, further)}
    clock.step("start")
    training, validation = problem.rows(TRAIN), problem.rows(VALIDATION)
    logger.info("linear start fitted to %s", counted(len(training), "region"))

    floor = _fit_logistic(problem, further[:, len(matrices) :], _FLOOR, _FLOOR_PENALTY)
    lowest = _part(floor, _FLOOR)
    logits["floor"] = lowest.logits(problem.tokens, further)
    clock.step("floor")
    seen = logits["start"].copy()
    seen[training] = out_of_fold  # what the network meets in training is what it will meet later
    columns, neighbours = _fit_neighbours(problem, columns, seen)
    inputs = np.concatenate([further, neighbours], axis=1) if neighbours.shape[1] else further

    logistic: tuple[LinearPart, ...] = ()
    spaced: LogisticFit | None = None
    if average or refine:
        patterns = spaced_patterns(problem.tokens.shape[1])
        spaced = _fit_logistic(problem, further, patterns, _SPACED_PENALTY)
    if spaced is not None and average:
        logits["spaced"] = _part(spaced, patterns).logits(problem.tokens, further)
        logistic = (lowest, _part(spaced, patterns))
    clock.step("spaced")
    networks: tuple[RegionNetwork, ...] = ()
    chosen = np.zeros(0, np.int64)
    history: dict[str, dict[str, np.ndarray]] = {}
    converged: list[bool] = []
    if spaced is not None and refine:
        codes = _codes(problem, random_context, generator)
        chosen = _choose_columns(problem, spaced)
        networks, history, converged = _fit_networks(
            problem, chosen, seen, inputs, codes, n_networks, max_epochs, generator, progress
        )
        logits["refined"] = network_logits(networks, chosen, problem.tokens, inputs, logits["start"])

    clock.step("networks")
    losses = {name: _validation_loss(problem, values) for name, values in logits.items()}
    kept, reason = "start", "neither network nor average was asked for"
    if refine:
        better = losses["refined"] < losses["start"]
        kept = "refined" if better else "start"
        reason = f"validation loss {losses['refined']:.4f} with the network, {losses['start']:.4f} without"
    shares = np.ones(1)
    if average:
        parts = [logits[kept], logits["floor"], logits["spaced"]]
        shares = np.array([0.5, 0.25, 0.25])
        logits["averaged"] = combine(parts, shares)
        losses["averaged"] = _validation_loss(problem, logits["averaged"])
        reason += f"; {losses['averaged']:.4f} averaged with logistic regressions"
        if losses["averaged"] < losses[kept]:
            kept = "averaged"
    if not (refine and losses["refined"] < losses["start"]):
        networks, chosen = (), chosen[:0]
    if kept != "averaged":
        logistic, shares = (), np.ones(1)
    if kept == "start" and (refine or average):
        reason += ": nothing was better than the linear start, which is kept"

    copies = _copies(problem, logits[kept], random_context, generator)
    metrics = _measured(problem, logits)
    clock.step("measures")
    report = {
        "kept": kept,
        "reason": reason,
        "mode": "neighbourhood" if problem.regions is not None else "sequence",
        "context": "random" if random_context else "none" if tf_context is None else "tf",
        "n_train": len(training),
        "n_validation": len(validation),
        "n_test": len(problem.rows(TEST)),
        "validation_chromosomes": np.unique(problem.chromosome[validation]),
        "penalties": {
            "ridge": penalties,
            "floor": floor.penalty,
            "spaced": float("nan") if spaced is None else spaced.penalty,
        },
        "validation_loss": losses,
        "history": history,
        "converged": all(stopped for stopped in converged),
        "metrics": metrics,
        "unseen_cells": {} if copies is None else copies.report,
        "cpu_by_step": clock.steps,
        "seconds": time.perf_counter() - clock.began,
        "cpu_seconds": sum(clock.steps.values()),
    }
    return RegionModel(
        problem.tokens.shape[1], start, columns, networks, chosen, logistic, shares, copies, lowest, report
    )


def _checked(
    tokens: Any,
    labels: Any,
    chromosome: Any,
    split: Any,
    tf_context: Any,
    neighbourhood: RegionSet | None,
    generator: np.random.Generator,
    warn_constant: bool,
) -> _Problem:
    """Check all input."""
    tokens = sequences.check_tokens(tokens)
    size, length = tokens.shape
    if length < _SHORTEST:
        raise ValueError(f"regions must have at least {_SHORTEST} bases, found {length}.")
    labels = np.asarray(labels, np.float32)
    if labels.ndim != 2 or len(labels) != size or not labels.shape[1]:
        raise ValueError(f"labels must be (regions, cell types) with {size:,} rows, found shape {labels.shape}.")
    bad = ~(np.isnan(labels) | (labels == 0) | (labels == 1))
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        raise ValueError(
            f"labels must be 0, 1 or NaN (not known), found {counted(int(bad.sum()), 'other value')}; the first is "
            f"{labels[row, column]:g} of region {row} in cell type {column}. Call peaks first, or choose a threshold."
        )
    codes = whole_numbers(chromosome, "chromosome", minimum=0)
    if codes.shape != (size,):
        raise ValueError(f"chromosome must have one code for each of {size:,} regions, found shape {codes.shape}.")
    given = None
    if split is not None:
        given = whole_numbers(split, "split", minimum=TRAIN, maximum=TEST)
        if given.shape != (size,):
            raise ValueError(f"split must have one entry for each of {size:,} regions, found shape {given.shape}.")
        if not (given == TRAIN).any():
            raise ValueError("split has no training region (0).")
    regions = None if neighbourhood is None else region_set.check_region_set(neighbourhood, size)
    chosen = choose_split(given, codes, None if regions is None else regions.position, generator)
    # A region without any label teaches and judges nothing.
    chosen = np.where(np.isfinite(labels).any(1), chosen, UNLABELLED)
    for part, name in ((TRAIN, "training"), (VALIDATION, "validation")):
        if not (chosen == part).any():
            raise ValueError(f"no {name} region has a label.")

    main = np.ones(labels.shape[1], bool)
    context = None
    if tf_context is not None:
        context = np.asarray(tf_context, np.float64)
        if context.ndim != 2 or len(context) != labels.shape[1] or not context.shape[1]:
            raise ValueError(
                f"tf_context must be (cell types, factors) with {labels.shape[1]} rows, found shape {context.shape}."
            )
        partly = np.isnan(context).any(1) & ~np.isnan(context).all(1)
        if partly.any() or np.isinf(context).any():
            row = int(np.flatnonzero(partly | np.isinf(context).any(1))[0])
            raise ValueError(
                f"tf_context of cell type {row} has some entries that are not finite: give all factors, or NaN for all "
                "of a cell type without expression."
            )
        main = np.isfinite(context).all(1)
        if not main.any():
            raise ValueError("tf_context is NaN in every cell type: leave it out.")
    training = labels[chosen == TRAIN]
    single = [c for c in range(labels.shape[1]) if len(np.unique(training[np.isfinite(training[:, c]), c])) < 2]
    if single and warn_constant:
        warnings.warn(
            f"cell types {single} have labels of one kind alone, or none, in training: they are predicted as constant "
            "and their measures are NaN.",
            UserWarning,
            stacklevel=3,
        )
    return _Problem(sequences.one_strand(tokens), labels, codes, chosen, main, context, regions)


def _grow_motifs(problem: _Problem, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Motifs of the training regions, grown from the words with most weight in a logistic regression."""
    training = problem.rows(TRAIN)
    number = min(_MOST_MOTIFS, len(training) // _REGIONS_PER_MOTIF)
    if not number:
        return {}
    patterns = (kmers.contiguous(_WORD),)
    design = Design(kmers.kmer_rows(problem.tokens[training], patterns), np.zeros((len(training), 0), np.float32))
    fit = fit_logistic(design, problem.labels[training], _FLOOR_PENALTY)
    weight = np.linalg.norm(fit.weights, axis=1) * _column_moments(problem, patterns)[1]
    words = distinct_words(kmers.kmer_words(_WORD), weight, number)
    sample = problem.tokens[generator.permutation(training)[:_GROWN_ON]]
    flank = min(_FLANK, (problem.tokens.shape[1] - _WORD) // 2)
    letters = ["".join("ACGT"[base] for base in word) for word in words]
    return {
        f"grown_{name}": motif for name, motif in zip(letters, grow_motifs(sample, words, flank=flank), strict=True)
    }


def _fit_columns(problem: _Problem, matrices: Mapping[str, np.ndarray]) -> tuple[Columns, np.ndarray]:
    """Columns beside the k-mers, and their scaled values."""
    regions = problem.regions
    groups = 0
    density = (0.0, 0.0)
    if regions is not None:
        groups = 1 if regions.group is None else int(regions.group.max()) + 1
        by_chromosome = region_set.density(regions)
        density = (float(by_chromosome.min()), float(by_chromosome.max()))
    width = len(matrices) + (0 if not groups else len(region_set.column_names(groups)))
    none = np.zeros(0, np.float32)
    columns = Columns(
        tuple(matrices), tuple(matrices.values()), groups, np.zeros(width, np.float32), np.ones(width, np.float32),
        density, none, none, none,
    )  # fmt: skip
    raw = columns.raw(problem.tokens, regions)
    mean, spread = _mean_and_spread(raw[problem.rows(TRAIN)])
    columns = columns._replace(mean=mean, spread=spread)
    return columns, ((raw - mean) / spread).astype(np.float32)


def _fit_neighbours(problem: _Problem, columns: Columns, seen: np.ndarray) -> tuple[Columns, np.ndarray]:
    """Scaled means of linear logits over neighbours, out of fold in training."""
    if problem.regions is None:
        return columns, np.zeros((len(seen), 0), np.float32)
    training = problem.rows(TRAIN)
    columns = columns._replace(fallback=seen[training].mean(0))
    raw = region_set.neighbour_means(problem.regions, seen, columns.fallback)
    mean, spread = _mean_and_spread(raw[training])
    return columns._replace(neighbour_mean=mean, neighbour_spread=spread), ((raw - mean) / spread).astype(np.float32)


def _mean_and_spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spread = values.std(0)
    return values.mean(0).astype(np.float32), np.where(spread > 1e-6, spread, 1.0).astype(np.float32)


def _fit_start(
    problem: _Problem, further: np.ndarray
) -> tuple[LinearPart, Float[np.ndarray, " components"], Float[np.ndarray, "rows cells"]]:
    """Ridge on the training regions as logits, the penalties of its components, and its out-of-fold logits."""
    training = problem.rows(TRAIN)
    labels = problem.labels[training].astype(np.float64)
    # No more columns than regions.
    k = next((k for k in range(_LONGEST_KMER, 3, -1) if kmers.n_columns((kmers.contiguous(k),)) <= len(training)), 3)
    patterns = (kmers.contiguous(k),)
    design = Design(kmers.kmer_rows(problem.tokens[training], patterns), further[training])
    position = None if problem.regions is None else problem.regions.position[training]
    fold = balanced_folds(pieces(problem.chromosome[training], position))
    ridge = fit_ridge(design, labels, fold, _PENALTIES)
    slope, intercept = calibrate(ridge.out_of_fold, labels)
    weights = (ridge.weights * slope).astype(np.float32)
    start = LinearPart(patterns, weights, (ridge.intercept * slope + intercept).astype(np.float32))
    return start, ridge.penalties, (ridge.out_of_fold * slope + intercept).astype(np.float32)


def calibrate(
    scores: Float[np.ndarray, "rows cells"], labels: Float[np.ndarray, "rows cells"]
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    """Return slope and intercept of the logistic regression of each cell type's labels on its scores (Platt 1999).

    Of a cell type with one kind of label the slope is 0. Two labels are added at each mean score, one of either kind
    and half a weight each, so that neither is infinite.
    """
    slopes, intercepts = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for cell in range(scores.shape[1]):
        known = np.isfinite(labels[:, cell])
        target = labels[known, cell]
        rate = (target.sum() + 0.5) / (len(target) + 1)
        coefficient = np.array([0.0, np.log(rate / (1 - rate))])
        if len(np.unique(target)) == 2:
            score = scores[known, cell].astype(np.float64)
            score = np.append(score, [score.mean()] * 2)
            target, weight = np.append(target, [0.0, 1.0]), np.append(np.ones(known.sum()), [0.5, 0.5])
            table = np.stack([score, np.ones_like(score)], axis=1)
            for _ in range(25):
                mean = 1 / (1 + np.exp(-table @ coefficient))
                slope = table.T @ (weight * (target - mean))
                curvature = (table * (weight * mean * (1 - mean))[:, None]).T @ table
                step = np.linalg.solve(curvature + 1e-9 * np.eye(2), slope)
                coefficient = coefficient + step
                if np.abs(step).max() < 1e-8:
                    break
        slopes[cell], intercepts[cell] = coefficient
    return slopes, intercepts


def _fit_logistic(
    problem: _Problem, further: np.ndarray, patterns: tuple[kmers.Pattern, ...], first: float
) -> LogisticFit:
    training, validation = problem.rows(TRAIN), problem.rows(VALIDATION)
    designs = [Design(kmers.kmer_rows(problem.tokens[r], patterns), further[r]) for r in (training, validation)]
    return choose_logistic(designs[0], problem.labels[training], designs[1], problem.labels[validation], first=first)


def _part(fit: LogisticFit, patterns: tuple[kmers.Pattern, ...]) -> LinearPart:
    return LinearPart(patterns, fit.weights, fit.intercept)


def _codes(problem: _Problem, random_context: bool, generator: np.random.Generator) -> Float[np.ndarray, "cells codes"]:
    if random_context:
        return random_codes(problem.labels.shape[1], generator)
    if problem.context is None:
        return np.eye(problem.labels.shape[1], dtype=np.float32)
    return context_codes(problem.context)


def _choose_columns(problem: _Problem, spaced: LogisticFit) -> Int[np.ndarray, " chosen"]:
    """Columns that move the logits of the logistic regression most: length of the weights times the spread."""
    patterns = spaced_patterns(problem.tokens.shape[1])
    mean, spread = _column_moments(problem, patterns)
    weight = np.linalg.norm(spaced.weights[: len(spread)], axis=1) * spread
    return np.sort(np.argsort(-weight, kind="stable")[:_CHOSEN])


def _column_moments(
    problem: _Problem, patterns: tuple[kmers.Pattern, ...]
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """Mean and spread of each column of k-mers over training regions, in blocks."""
    training = problem.tokens[problem.rows(TRAIN)]
    sums = np.zeros((2, kmers.n_columns(patterns)))
    for _, rows in kmers.row_blocks(training, patterns):
        ones = np.ones((len(rows.used), 1))
        sums[0] += kmers.transposed_products(rows, ones)[:, 0]
        sums[1] += kmers.transposed_products(rows._replace(values=rows.values**2), ones)[:, 0]
    mean, square = sums / len(training)
    return mean.astype(np.float32), np.sqrt(np.maximum(square - mean**2, 0)).astype(np.float32)


def _fit_networks(
    problem: _Problem,
    chosen: Int[np.ndarray, " chosen"],
    seen: Float[np.ndarray, "n cells"],
    inputs: Float[np.ndarray, "n further"],
    codes: Float[np.ndarray, "cells codes"],
    n_networks: int,
    max_epochs: int | None,
    generator: np.random.Generator,
    progress: bool,
) -> tuple[tuple[RegionNetwork, ...], dict[str, dict[str, np.ndarray]], list[bool]]:
    """Train on what the out-of-fold logits leave; the history of each network by its number, and which stopped."""
    training = problem.rows(TRAIN)
    rows = np.concatenate([training, problem.rows(VALIDATION)])
    mean, spread = (part[chosen] for part in _column_moments(problem, spaced_patterns(problem.tokens.shape[1])))
    # One scale for all k-mers: a rare one says little, and does not become loud for being rare.
    common = max(float(np.sqrt(np.mean(spread**2))), 1e-6)
    # As many columns as motifs were found, up to the next step: those beyond are 0 and change nothing.
    inputs = zero_padded(inputs, (len(inputs), round_up(inputs.shape[1], _WIDTH_STEP)))
    further_mean = np.concatenate([inputs[training].mean(0), seen[training].mean(0)])
    data = {
        "counts": count_table(problem.tokens[rows], chosen),
        "further": inputs[rows],
        "start": seen[rows],
        "labels": problem.labels[rows],
    }
    steps = -(-len(training) // _BATCH)
    epochs = min(_MOST_EPOCHS, -(-_STEPS // steps)) if max_epochs is None else max_epochs
    shown = settings.progress_bar
    settings.progress_bar = shown and progress
    networks, history, converged = [], {}, []
    try:
        for number in range(n_networks):
            network = RegionNetwork(
                column_mean=mean,
                column_scale=np.full(len(mean), 1 / common),
                further_mean=further_mean,
                further_scale=np.ones_like(further_mean),
                codes=codes,
                main=problem.main,
                rngs=streams(int(generator.integers(2**31))),
            )
            fit = train(
                network,
                data,
                loss=training_loss,
                weighted=True,
                optimizer=Adam(_falling_rate(steps * epochs), average=_AVERAGE),
                batch_size=_BATCH,
                max_epochs=epochs,
                validation=np.arange(len(training), len(rows)),
                patience=max(1, epochs // 4),
                keep_start=True,
                rng=int(generator.integers(2**31)),
                description=f"region network {number + 1} of {n_networks}",
            )
            networks.append(network)
            history[str(number)] = fit.as_dict()["history"]
            converged.append(fit.converged)
    finally:
        settings.progress_bar = shown
    return tuple(networks), history, converged


def _falling_rate(steps: int) -> Callable[[np.ndarray], np.ndarray]:
    """Half a cosine from the rate to a tenth of it: optax's ``cosine_decay_schedule``, which is nine small programs."""

    def rate(step: np.ndarray) -> np.ndarray:
        return _RATE * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.minimum(step, steps) / steps)))

    return rate


def _validation_loss(problem: _Problem, logits: np.ndarray) -> float:
    """What the network's training lowers, on the validation regions."""
    rows = problem.rows(VALIDATION)
    return cross_entropy(logits[rows], problem.labels[rows]) + within_loss(
        logits[rows], problem.labels[rows], problem.main
    )


def _copies(
    problem: _Problem, logits: np.ndarray, random_context: bool, generator: np.random.Generator
) -> CellCopies | None:
    if problem.context is None:
        return None
    columns, rows = np.flatnonzero(problem.main), problem.rows(VALIDATION)
    context = problem.context[columns]
    if random_context:
        context = generator.normal(size=context.shape)
    return choose_copies(context, columns, problem.labels[rows], logits[rows])


def _measured(problem: _Problem, logits: Mapping[str, np.ndarray]) -> dict[str, dict[str, dict[str, float]]]:
    """Measures by part of the model and part of the split, of the main cell types."""
    labels = problem.labels[:, problem.main]
    parts = {"validation": problem.rows(VALIDATION), "test": problem.rows(TEST)}
    return {
        name: {
            part: ranking_measures(labels[rows], values[rows][:, problem.main])
            for part, rows in parts.items()
            if len(rows)
        }
        for name, values in logits.items()
    }

"""The contextual sequence model: what context and contacts add, beside a code without content and a linear model.

Quick cases are synthetic: their gains are regression evidence, never biological evidence. Full cases add real regions
of blood cells, the only ones that the promotion gate looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from diffbio_sc.benchmarks.contextual_real import BLOOD, blood_cases
from diffbio_sc.benchmarks.guard import THRESHOLD, GuardResult, compare
from diffbio_sc.benchmarks.records import MetricDef, Run
from diffbio_sc.benchmarks.store import open_store
from diffbio_sc.benchmarks.suite import ACCURACY, AVERAGE_PRECISION, F1, Case, Suite, SuiteReport, as_one_run, run_suite

NAME = "contextual_epigenomics"
SYNTHETIC = "synthetic_contextual_epigenomics"
#: Tasks, with what their targets mean and the number of classes.
TASKS = {"contextual_peak_calling": ("binary_peak_mask", 1), "chromatin_state_prediction": ("chromatin_state_id", 3)}
#: Variants of the operator, by flags alone.
ABLATIONS = ("sequence_only", "tf_context", "tf_plus_chromatin")
CONTROLS = ("random_context", "linear")
VARIANTS = (*ABLATIONS, *CONTROLS)
PRIMARY = {"contextual_peak_calling": "average_precision", "chromatin_state_prediction": "macro_f1"}
METRICS = (
    AVERAGE_PRECISION,
    F1,
    ACCURACY,
    MetricDef(name="macro_f1", group="labels", priority="primary", description="Mean over classes of the F1."),
    MetricDef(
        name="chromatin_consistency",
        group="structure",
        priority="primary",
        description="1 / (1 + guidance loss): how well similarities of embeddings follow the contacts, from 0 to 1.",
    ),
    MetricDef(name="auroc", group="regions", description="Area under the ROC curve, mean over cell types."),
    MetricDef(
        name="auroc_variable",
        group="regions",
        priority="primary",
        description="The same over regions that differ between cell types.",
    ),
)
_AXES = ["dataset", "task", "contextual_variant"]
_LENGTH, _FACTORS = 48, 4
_TRAINING, _TEST = 256, 128
_EPOCHS, _BATCH, _RATE = 30, 32, 5e-3
_GUIDANCE_WEIGHT = 0.5
_REACH = 4  # bases to either side of a position that the linear model reads: all 5-mers that cover it
_PENALTIES = np.geomspace(1e-4, 1.0, 5)


def suite(*, seeds: tuple[int, ...] = (0, 1, 2)) -> Suite:
    """Benchmark of the contextual sequence model, in the form of all suites."""
    return Suite(
        name=NAME,
        metrics=METRICS,
        cases=partial(_cases, seeds),
        variant_axis="contextual_variant",
        describe=describe,
    )


def run_contextual_epigenomics_suite(
    *, quick: bool = True, seeds: tuple[int, ...] = (0, 1, 2), strict: bool = True
) -> dict[str, Any]:
    """Run the contextual suite and report it.

    Parameters
    ----------
    quick
        Synthetic data alone (about a minute), or also real regions of blood cells (``DIFFBIO_SC_DATA``).
    seeds
        Seeds of data and fits, the same for all variants.
    strict
        Whether an error of a case is raised, or kept in ``failures``.

    Returns
    -------
    Report, in types that JSON holds but for ``report`` (a :class:`SuiteReport`): ``suite``, ``quick``,
    ``comparison_axes``, ``task_order``, ``contextual_contract``, ``contextual_evidence_scope`` (with the promotion
    gate), ``regression_expectations``, and by dataset and task ``variants`` (metrics, medians and each seed),
    ``differences`` (paired with ``sequence_only`` and ``random_context``: median, least and largest over seeds, and
    whether all agree) and ``best_variant_by_metric``.

    Examples
    --------
    The suite takes a minute; its command is ``python -m diffbio_sc.benchmarks --suite contextual_epigenomics``.

    >>> import diffbio_sc as dbio
    >>> report = dbio.benchmarks.run_contextual_epigenomics_suite(seeds=(0,))  # doctest: +SKIP
    >>> report["task_order"]  # doctest: +SKIP
    ['contextual_peak_calling', 'chromatin_state_prediction']
    """
    return full_report(run_suite(suite(seeds=tuple(seeds)), quick=quick, strict=strict))


def full_report(report: SuiteReport) -> dict[str, Any]:
    """Return what :func:`run_contextual_epigenomics_suite` returns, of what the suite measured."""
    return {
        "suite": report.name,
        "quick": report.quick,
        **report.metadata,
        "contextual_evidence_scope": {**report.metadata["contextual_evidence_scope"], **promotion_gate(report)},
        "datasets": _by_dataset(report),
        "skipped": dict(report.skipped),
        "failures": dict(report.failures),
        "report": report,
    }


def save_contextual_epigenomics_suite_run(report: Mapping[str, Any], store: Any, **options: Any) -> tuple[Any, Run]:
    """Store a report of :func:`run_contextual_epigenomics_suite`.

    Parameters
    ----------
    report
        The report.
    store
        Path of a store, a :class:`Store`, or a store of Calibrax.
    options
        ``commit``, ``branch``, ``environment`` and ``metadata`` of the run.

    Returns
    -------
    Path of the file, and the run.

    Examples
    --------
    The suite takes a minute; its command is ``python -m diffbio_sc.benchmarks --suite contextual_epigenomics``.

    >>> import diffbio_sc as dbio
    >>> report = dbio.benchmarks.run_contextual_epigenomics_suite(seeds=(0,))  # doctest: +SKIP
    >>> path, run = dbio.benchmarks.save_contextual_epigenomics_suite_run(report, "runs")  # doctest: +SKIP
    """
    run = _as_run(report, options)
    return open_store(store).save(run), run


def check_contextual_epigenomics_suite_regressions(
    report: Mapping[str, Any],
    store: Any,
    *,
    threshold: float = THRESHOLD,
    set_baseline_if_missing: bool = False,
    **options: Any,
) -> GuardResult:
    """Store a report and tell what of it is worse than in the store's baseline.

    Points are matched by dataset, task and contextual_variant.

    Parameters
    ----------
    report
        Report of :func:`run_contextual_epigenomics_suite`.
    store
        Path of a store, a :class:`Store`, or a store of Calibrax.
    threshold
        Share of the stored median by which a metric may get worse in any case; see :mod:`diffbio_sc.benchmarks.guard`.
    set_baseline_if_missing
        Make this run the baseline if there is none.
    options
        ``commit``, ``branch``, ``environment`` and ``metadata`` of the run.

    Returns
    -------
    A row for each metric, and whether anything got worse.

    Raises
    ------
    FileNotFoundError
        If the store has no baseline.

    Examples
    --------
    The suite takes a minute; its command is ``python -m diffbio_sc.benchmarks --suite contextual_epigenomics``.

    >>> import diffbio_sc as dbio
    >>> report = dbio.benchmarks.run_contextual_epigenomics_suite(seeds=(0,))  # doctest: +SKIP
    >>> result = dbio.benchmarks.check_contextual_epigenomics_suite_regressions(
    ...     report, "runs", set_baseline_if_missing=True
    ... )  # doctest: +SKIP
    >>> result.passed  # doctest: +SKIP
    True
    """
    opened = open_store(store)
    baseline = opened.get_baseline()
    if baseline is None and not set_baseline_if_missing:
        raise FileNotFoundError(
            "the store has no baseline: pass set_baseline_if_missing=True, or set one with Store.set_baseline."
        )
    run = _as_run(report, options)
    opened.save(run)
    if baseline is None:
        opened.set_baseline(run)
        baseline = run
    return compare(run, baseline, threshold=threshold, scenarios=[NAME], metric_defs=opened.metric_defs)


def describe(quick: bool) -> dict[str, Any]:
    """What the suite says of its data, tasks and evidence."""
    from diffbio_sc.operators.epigenomics import contextual_contract

    return {
        "comparison_axes": _AXES,
        "task_order": list(TASKS) if quick else [*TASKS, BLOOD.task],
        "contextual_contract": {
            "required_keys": list(contextual_contract.REQUIRED_KEYS),
            "target_semantics_by_task": {task: semantics for task, (semantics, _) in TASKS.items()},
            "num_output_classes_by_task": {task: classes for task, (_, classes) in TASKS.items()},
        },
        "contextual_evidence_scope": {
            "synthetic": quick,
            "evidence": "regression only" if quick else "regression, and real regions for the promotion gate",
            "promotion_eligible": False,
            "stable_scope": "excluded",
        },
        "regression_expectations": {
            "required_variants": list(VARIANTS),
            "primary_metric_by_task": dict(PRIMARY),
            "baseline_name": "main",
            "threshold": THRESHOLD,
        },
    }


def promotion_gate(report: SuiteReport) -> dict[str, Any]:
    """Whether the gain of contexts may be promoted as a biological one, and why not.

    Synthetic data never promote. On real, cell-type-resolved data the model with contexts must beat the one of the
    sequence alone, the same model with a random code for each cell type, and the linear one, in every seed.
    """
    real = [point for point in report.points if point.tags["dataset"] == BLOOD.dataset]
    if not real:
        return {"promotion_eligible": False, "promotion_reason": "no real cell-type-resolved data were run"}
    rivals = ("sequence_only", "random_context", "linear")
    missing = [name for name in ("tf_context", *rivals) if name not in {p.tags["contextual_variant"] for p in real}]
    if missing:
        return {"promotion_eligible": False, "promotion_reason": f"variants {missing} did not run on real data"}
    gains = {name: _paired(report, BLOOD.dataset, BLOOD.task, "tf_context", name, BLOOD.primary) for name in rivals}
    behind = [name for name, gain in gains.items() if not gain["least"] > 0]
    reason = f"not better than {behind} in every seed" if behind else "better than all rivals in every seed"
    return {"promotion_eligible": not behind, "promotion_reason": reason, "promotion_gains": gains}


def _cases(seeds: tuple[int, ...], quick: bool) -> list[Case]:
    cases = [
        Case(
            dataset=SYNTHETIC,
            task=task,
            variant=variant,
            run=partial(_linear if variant == "linear" else partial(_trained, variant), task),
            role="control" if variant in CONTROLS else "subject",
            seeds=seeds,
        )
        for task in TASKS
        for variant in VARIANTS
    ]
    return cases if quick else cases + blood_cases(seeds)


@lru_cache(maxsize=8)
def _data(task: str, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Examples to train on, and others to test on."""
    from diffbio_sc.sources import build_synthetic_contextual_epigenomics_dataset

    semantics, classes = TASKS[task]
    parts = [
        build_synthetic_contextual_epigenomics_dataset(
            n_examples=number,
            sequence_length=_LENGTH,
            num_tf_features=_FACTORS,
            target_semantics=semantics,
            num_output_classes=classes,
            rng=np.random.default_rng([seed, part]),
        )
        for part, number in enumerate((_TRAINING, _TEST))
    ]
    return parts[0], parts[1]


def configuration(variant: str, task: str) -> Any:
    """Return the settings of a variant: one operator, told apart by flags."""
    from diffbio_sc.operators.epigenomics import ContextualEpigenomicsConfig

    return ContextualEpigenomicsConfig(
        hidden_dim=32,
        num_layers=1,
        num_heads=2,
        intermediate_dim=64,
        max_length=_LENGTH,
        num_tf_features=_FACTORS,
        num_outputs=TASKS[task][1],
        stem_filters=32,
        stem_width=9,
        dropout_rate=0.0,
        use_tf_context=variant != "sequence_only",
        use_chromatin_guidance=variant == "tf_plus_chromatin",
        chromatin_guidance_weight=_GUIDANCE_WEIGHT,
        guidance="embedding_similarity",
    )


def _trained(variant: str, task: str, seed: int) -> dict[str, float]:
    from flax import nnx

    from diffbio_sc.operators.epigenomics import ContextualEpigenomicsOperator
    from diffbio_sc.training import Adam

    training, test = _data(task, seed)
    if variant == "random_context":
        training, test = (_random_context(part, seed) for part in (training, test))
    operator = ContextualEpigenomicsOperator(configuration(variant, task), rngs=nnx.Rngs(seed))
    operator.fit(training, max_epochs=_EPOCHS, batch_size=_BATCH, optimizer=Adam(_RATE), rng=seed)
    result, _, _ = operator.apply(test, {}, None)
    logits = np.asarray(result["logits"])
    scores = _scores(logits if logits.ndim == 3 else logits[..., None], test["targets"])
    return {**scores, "chromatin_consistency": consistency(result["token_embeddings"], test["chromatin_contacts"])}


def _random_context(data: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """A random code for each set of expressed factors: it tells cell types apart, and nothing of what they express."""
    context = data["tf_context"]
    kind = (context > 0.5) @ (2 ** np.arange(context.shape[1]))
    codes = np.random.default_rng([seed, 3]).normal(size=(2 ** context.shape[1], context.shape[1]))
    return {**data, "tf_context": codes[kind].astype(np.float32)}


def consistency(embeddings: Any, contacts: Any) -> float:
    """1 / (1 + mean squared difference of embeddings' similarities and contacts): from 0 to 1, the best."""
    from jax import numpy as jnp

    from diffbio_sc.operators.epigenomics.contextual.loss import similarity_loss

    tokens = jnp.asarray(embeddings)
    loss = similarity_loss(tokens, jnp.asarray(contacts), jnp.ones(tokens.shape[:2], bool)).mean()
    return 1.0 / (1.0 + float(loss))


def _linear(task: str, seed: int) -> dict[str, float]:
    """Ridge on the canonical 5-mers that cover a position, penalties from folds."""
    from diffbio_sc.genome.sequences import N
    from diffbio_sc.numerics.linear.design import Design
    from diffbio_sc.numerics.linear.ridge import fit_ridge
    from diffbio_sc.numerics.sequence import kmers

    classes = max(TASKS[task][1], 2)
    designs = []
    for part in _data(task, seed):
        tokens = np.where(part["sequence"].any(-1), part["sequence"].argmax(-1), N).astype(np.int8)
        padded = np.pad(tokens, ((0, 0), (_REACH, _REACH)), constant_values=N)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _REACH + 1, axis=1)
        rows = kmers.kmer_rows(np.ascontiguousarray(windows.reshape(-1, 2 * _REACH + 1)), [kmers.contiguous(5)])
        designs.append(Design(rows, np.zeros((len(rows.used), 0), np.float32)))
    training, test = _data(task, seed)
    labels = (training["targets"].reshape(-1, 1) == np.arange(classes)).astype(float)
    fold = np.repeat(np.arange(_TRAINING) % 4, _LENGTH)
    fit = fit_ridge(designs[0], labels, fold, _PENALTIES)
    values = designs[1].products(fit.weights.astype(np.float32)) + fit.intercept
    values = values.reshape(_TEST, _LENGTH, classes)
    # Of two classes, the difference from one half is the score; a probability, not a logit.
    return _scores(values[..., 1:] - 0.5 if classes == 2 else values, test["targets"])


def _scores(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, f1_score

    truth, values = targets.ravel().astype(int), logits.reshape(-1, logits.shape[-1])
    if values.shape[1] == 1:
        return {
            "average_precision": float(average_precision_score(truth, values[:, 0])),
            "f1": float(f1_score(truth, values[:, 0] > 0, zero_division=0.0)),
        }
    told = values.argmax(1)
    return {
        "accuracy": float((told == truth).mean()),
        "macro_f1": float(f1_score(truth, told, average="macro", zero_division=0.0)),
    }


def _as_run(report: Mapping[str, Any], options: Mapping[str, Any]) -> Run:
    if not isinstance(report.get("report"), SuiteReport):
        raise TypeError("report must be what run_contextual_epigenomics_suite returns.")
    found = as_one_run([report["report"]], **options)
    found.metadata["suites"][NAME]["contextual_evidence_scope"] = report["contextual_evidence_scope"]
    return found


def _by_dataset(report: SuiteReport) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for point in report.points:
        entry = found.setdefault(point.tags["dataset"], {}).setdefault(point.tags["task"], {"variants": {}})
        entry["variants"][point.tags["contextual_variant"]] = {
            "metrics": {name: metric.to_dict() for name, metric in point.metrics.items()},
            "tags": dict(point.tags),
            "comparison_key": [point.tags[axis] for axis in _AXES],
        }
    for dataset, tasks in found.items():
        for task, entry in tasks.items():
            variants = entry["variants"]
            entry["primary_metric"] = PRIMARY.get(task, BLOOD.primary)
            entry["differences"] = {
                rival: {
                    variant: {
                        metric: _paired(report, dataset, task, variant, rival, metric)
                        for metric in variants[variant]["metrics"]
                        if metric in variants[rival]["metrics"] and metric != "seconds"
                    }
                    for variant in variants
                    if variant != rival
                }
                for rival in ("sequence_only", "random_context")
                if rival in variants
            }
            names = {name for variant in variants.values() for name in variant["metrics"] if name != "seconds"}
            entry["best_variant_by_metric"] = {name: _best(variants, name) for name in sorted(names)}
    return found


def _best(variants: Mapping[str, Any], metric: str) -> str:
    values = {
        name: variant["metrics"][metric]["value"] for name, variant in variants.items() if metric in variant["metrics"]
    }
    return max(values, key=lambda name: values[name])


def _paired(report: SuiteReport, dataset: str, task: str, one: str, other: str, metric: str) -> dict[str, Any]:
    """Difference of two variants, seed by seed."""
    samples = [report.point(dataset, task, name).metrics[metric].samples or () for name in (one, other)]
    differences = np.subtract(*samples)
    return {
        "median": float(np.median(differences)),
        "least": float(differences.min()),
        "largest": float(differences.max()),
        "all_agree": bool((differences > 0).all() or (differences < 0).all()),
    }

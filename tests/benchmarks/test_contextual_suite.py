"""The contextual suite: checklist lines E9 to E12, and the faults that its check must catch."""

import dataclasses
import json
import math

import numpy as np
import pytest
from stored_baseline import baseline, report_of

from diffbio_sc.benchmarks import (
    Metric,
    Point,
    Store,
    SuiteReport,
    check_contextual_epigenomics_suite_regressions,
    run_contextual_epigenomics_suite,
    save_contextual_epigenomics_suite_run,
)
from diffbio_sc.benchmarks import contextual_suite as suite

PEAKS, STATES = "contextual_peak_calling", "chromatin_state_prediction"


@pytest.fixture(scope="module")
def stored():
    """The report that the baseline of the repository was made of."""
    report = report_of(baseline(), suite.NAME)
    return suite.full_report(report)


@pytest.fixture
def store(tmp_path, stored):
    save_contextual_epigenomics_suite_run(stored, tmp_path)
    check_contextual_epigenomics_suite_regressions(stored, tmp_path, set_baseline_if_missing=True)
    return Store(tmp_path)


def changed(report, change):
    """The report with points changed, or left out where ``change`` gives None."""
    points = tuple(found for point in report["report"].points if (found := change(point)) is not None)
    return {**report, "report": dataclasses.replace(report["report"], points=points)}


def verdicts(report, store):
    result = check_contextual_epigenomics_suite_regressions(report, store)
    assert result.exit_code == int(not result.passed)
    return [(row.tags["task"], row.tags["contextual_variant"], row.metric, row.verdict) for row in result.regressions]


@pytest.fixture(scope="module")
def small():
    """One seed of the three ablations on one task, smaller than the quick suite, run here."""
    suite._data.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "TASKS", {PEAKS: suite.TASKS[PEAKS]})
        patch.setattr(suite, "VARIANTS", suite.ABLATIONS)
        patch.setattr(suite, "_TRAINING", 192)
        patch.setattr(suite, "_TEST", 64)
        report = run_contextual_epigenomics_suite(quick=True, seeds=(7,))
    suite._data.cache_clear()
    return report


def test_E9_context_lifts_the_task_and_contacts_the_structure(small):
    variants = small["datasets"][suite.SYNTHETIC][PEAKS]["variants"]
    values = {
        name: {key: entry["value"] for key, entry in found["metrics"].items()} for name, found in variants.items()
    }
    assert list(values) == ["sequence_only", "tf_context", "tf_plus_chromatin"]
    assert values["tf_context"]["average_precision"] > values["sequence_only"]["average_precision"] + 0.2
    assert values["tf_plus_chromatin"]["chromatin_consistency"] > values["tf_context"]["chromatin_consistency"] + 0.03
    for found in values.values():
        assert 0 < found["chromatin_consistency"] <= 1


def test_E9_stored_variants_of_both_tasks(stored):
    assert list(stored["datasets"][suite.SYNTHETIC]) == [PEAKS, STATES]
    for task, entry in stored["datasets"][suite.SYNTHETIC].items():
        assert list(entry["variants"]) == list(suite.VARIANTS)
        primary = entry["primary_metric"]
        gain = entry["differences"]["sequence_only"]
        assert gain["tf_context"][primary]["least"] > 0.1, task
        structure = [entry["variants"][name]["metrics"]["chromatin_consistency"] for name in suite.ABLATIONS]
        assert min(structure[2]["samples"]) > max(structure[1]["samples"])
        assert entry["best_variant_by_metric"]["chromatin_consistency"] == "tf_plus_chromatin"
        # A random code tells the cell types apart; what factors content adds is the rest.
        assert set(entry["differences"]["random_context"]) == {
            "sequence_only",
            "tf_context",
            "tf_plus_chromatin",
            "linear",
        }


def test_E9_consistency_is_bounded_and_one_for_perfect_structure():
    unit = np.eye(4, dtype=np.float32)[None, [0, 0, 1, 2]]
    contacts = (1 + unit @ unit.swapaxes(1, 2)) / 2
    assert suite.consistency(unit, contacts) == pytest.approx(1.0)
    # Similarity 1/2 of every pair against contacts of 1: a squared difference of 1/4.
    assert suite.consistency(np.eye(4)[None].astype(np.float32), np.ones((1, 4, 4))) == pytest.approx(0.8)


def test_E9_variants_are_one_operator_told_apart_by_flags():
    configs = [suite.configuration(variant, PEAKS) for variant in suite.ABLATIONS]
    flags = [(config.use_tf_context, config.use_chromatin_guidance) for config in configs]
    assert flags == [(False, False), (True, False), (True, True)]
    assert len({dataclasses.replace(c, use_tf_context=True, use_chromatin_guidance=True) for c in configs}) == 1


def test_E9_random_context_tells_cell_types_apart_and_nothing_else():
    training, test = suite._data(PEAKS, 0)
    one, other = (suite._random_context(part, 0) for part in (training, test))
    expressed = training["tf_context"] > 0.5
    same = (expressed[:, None] == expressed[None]).all(-1)
    equal = (one["tf_context"][:, None] == one["tf_context"][None]).all(-1)
    assert np.array_equal(same, equal)
    assert {*map(tuple, other["tf_context"])} <= {*map(tuple, one["tf_context"])}
    assert one["targets"] is training["targets"]


def test_E10_contract_of_the_tasks_that_ran(small):
    assert small["contextual_contract"] == {
        "required_keys": ["sequence", "tf_context", "chromatin_contacts", "targets"],
        "target_semantics_by_task": {PEAKS: "binary_peak_mask"},
        "num_output_classes_by_task": {PEAKS: 1},
    }


def test_E10_contract_is_stored_and_kept_by_the_data(stored):
    from diffbio_sc.operators.epigenomics.contextual_contract import validate_contextual_epigenomics_dataset

    contract = stored["contextual_contract"]
    assert contract["target_semantics_by_task"] == {PEAKS: "binary_peak_mask", STATES: "chromatin_state_id"}
    assert contract["num_output_classes_by_task"] == {PEAKS: 1, STATES: 3}
    for task in (PEAKS, STATES):
        for part in suite._data(task, 0):
            validate_contextual_epigenomics_dataset(
                part,
                target_semantics=contract["target_semantics_by_task"][task],
                num_output_classes=contract["num_output_classes_by_task"][task],
                required_keys=tuple(contract["required_keys"]),
            )


def test_E11_run_is_stored_with_the_axes(tmp_path, stored):
    path, run = save_contextual_epigenomics_suite_run(stored, tmp_path, commit="abc", branch="main")
    assert path == tmp_path / "runs" / f"{run.id}.json"
    data = json.loads(path.read_text())
    assert stored["comparison_axes"] == ["dataset", "task", "contextual_variant"]
    for point in data["points"]:
        assert set(stored["comparison_axes"]) <= set(point["tags"])
    assert (data["commit"], data["branch"]) == ("abc", "main")
    block = data["metadata"]["suites"][suite.NAME]
    assert block["contextual_contract"] == stored["contextual_contract"]
    assert block["contextual_evidence_scope"]["promotion_eligible"] is False
    assert Store(tmp_path).query(task=PEAKS, contextual_variant="tf_context")[0].id == run.id


def test_E11_without_a_baseline(tmp_path, stored):
    with pytest.raises(FileNotFoundError, match="set_baseline_if_missing=True"):
        check_contextual_epigenomics_suite_regressions(stored, tmp_path)
    assert not (tmp_path / "runs").exists()
    assert check_contextual_epigenomics_suite_regressions(stored, tmp_path, set_baseline_if_missing=True).passed
    with pytest.raises(TypeError, match="run_contextual_epigenomics_suite"):
        save_contextual_epigenomics_suite_run({}, tmp_path)


def test_E11_the_same_figures_pass(store, stored):
    assert verdicts(stored, store) == []


def of(task, variant):
    return lambda point: (point.tags["task"], point.tags["contextual_variant"]) == (task, variant)


def with_metric(point, name, value):
    return dataclasses.replace(point, metrics={**point.metrics, name: Metric.of([value] * 3)})


def test_E11_catches_a_metric_that_is_nan(store, stored):
    here = of(PEAKS, "tf_context")
    report = changed(stored, lambda point: with_metric(point, "f1", math.nan) if here(point) else point)
    assert verdicts(report, store) == [(PEAKS, "tf_context", "f1", "not finite")]


@pytest.mark.parametrize("variant", suite.VARIANTS)
def test_E11_catches_a_missing_variant(store, stored, variant):
    here = of(STATES, variant)
    assert verdicts(changed(stored, lambda point: None if here(point) else point), store) == [
        (STATES, variant, "", "missing")
    ]


def test_E11_catches_a_missing_task(store, stored):
    found = verdicts(changed(stored, lambda point: None if point.tags["task"] == PEAKS else point), store)
    assert found == [(PEAKS, variant, "", "missing") for variant in suite.VARIANTS]


def test_E11_catches_a_missing_metric(store, stored):
    here = of(PEAKS, "tf_plus_chromatin")

    def change(point: Point) -> Point:
        kept = {name: metric for name, metric in point.metrics.items() if name != "chromatin_consistency"}
        return dataclasses.replace(point, metrics=kept) if here(point) else point

    assert verdicts(changed(stored, change), store) == [
        (PEAKS, "tf_plus_chromatin", "chromatin_consistency", "missing")
    ]


@pytest.mark.parametrize("variant", suite.ABLATIONS)
def test_E11_catches_a_score_of_zero(store, stored, variant):
    here = of(PEAKS, variant)
    report = changed(stored, lambda point: with_metric(point, "f1", 0.0) if here(point) else point)
    assert verdicts(report, store) == [(PEAKS, variant, "f1", "worse")]


def test_E12_synthetic_gains_are_regression_evidence_only(stored, small):
    for report in (stored, small):
        scope = report["contextual_evidence_scope"]
        assert scope["synthetic"] is True
        assert scope["promotion_eligible"] is False
        assert scope["stable_scope"] == "excluded"
        assert scope["evidence"] == "regression only"
        assert scope["promotion_reason"] == "no real cell-type-resolved data were run"


def real_report(**areas):
    points = tuple(
        Point(
            name=f"{suite.NAME}/heme16/region_activity/{variant}",
            scenario=suite.NAME,
            tags={"dataset": "heme16", "task": "region_activity", "contextual_variant": variant},
            metrics={"auroc_variable": Metric.of(values)},
        )
        for variant, values in areas.items()
    )
    return SuiteReport(name=suite.NAME, quick=False, points=points, seeds={}, metric_defs={})


def test_E12_promotion_gate_needs_real_data_and_a_gain_over_every_rival():
    others = {"sequence_only": [0.60, 0.61, 0.60], "linear": [0.61, 0.61, 0.60]}
    won = suite.promotion_gate(real_report(tf_context=[0.65, 0.66, 0.65], random_context=[0.63, 0.64, 0.63], **others))
    assert won["promotion_eligible"] is True
    tied = suite.promotion_gate(real_report(tf_context=[0.65, 0.63, 0.65], random_context=[0.63, 0.64, 0.63], **others))
    assert tied["promotion_eligible"] is False
    assert tied["promotion_reason"] == "not better than ['random_context'] in every seed"
    lacking = suite.promotion_gate(real_report(tf_context=[0.7] * 3, **others))
    assert lacking["promotion_reason"] == "variants ['random_context'] did not run on real data"


@pytest.mark.slow
def test_E11_another_seed_passes_against_the_stored_baseline(store):
    report = run_contextual_epigenomics_suite(quick=True, seeds=(21, 22, 23))
    result = check_contextual_epigenomics_suite_regressions(report, store)
    assert result.passed, result.summary()

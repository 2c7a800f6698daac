"""The form that all suites share, the suites themselves, and checklist line M2."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from stored_baseline import baseline

import diffbio_sc as dbio
from diffbio_sc.benchmarks import (
    Case,
    MetricDef,
    Store,
    Suite,
    as_one_run,
    chromatin_states_suite,
    compare,
    contacts_suite,
    peaks_suite,
    run_deconvolution_suite,
    run_suite,
    spatial_genes_suite,
)
from diffbio_sc.benchmarks.command import SUITES, find_suite
from diffbio_sc.sources import SeqFISHConfig, SeqFISHSource


def a_suite(*cases, **options):
    return Suite(name="demo", metrics=(MetricDef(name="f1"),), cases=lambda quick: cases, **options)


def a_case(run, variant="one", **options):
    return Case(dataset="data", task="task", variant=variant, run=run, **options)


def test_seeds_become_samples_and_the_median():
    report = run_suite(a_suite(a_case(lambda seed: {"f1": seed / 10}, seeds=(3, 1, 8))))
    point = report.points[0]
    assert point.name == "demo/data/task/one"
    assert point.tags == {"dataset": "data", "task": "task", "variant": "one"}
    assert point.metrics["f1"].samples == (0.3, 0.1, 0.8)
    assert (point.metrics["f1"].lower, point.metrics["f1"].value, point.metrics["f1"].upper) == (0.1, 0.3, 0.8)
    assert report.value("data", "task", "one", "f1") == 0.3
    run = as_one_run([report])
    assert run.metadata["seeds"] == {"demo/data/task/one": [3, 1, 8]}
    assert run.metadata["size"] == "quick"
    assert run.metric_defs["seconds"].direction == "info"
    with pytest.raises(KeyError, match="no point 'demo/data/task/two'"):
        report.point("data", "task", "two")


def test_other_seeds_leave_cases_without_randomness_as_they_are():
    fixed, drawn = (
        a_case(lambda seed: {"f1": seed}, name, seeds=seeds) for name, seeds in (("a", (0,)), ("b", (0, 1)))
    )
    report = run_suite(a_suite(fixed, drawn), seeds=[5, 6, 7])
    assert report.seeds == {"demo/data/task/a": [0], "demo/data/task/b": [5, 6, 7]}


def test_cases_that_lack_something_are_left_out_with_the_reason():
    report = run_suite(a_suite(a_case(lambda seed: {}, lacking="needs the package x", role="peer")))
    assert report.points == ()
    assert report.skipped == {"demo/data/task/one": "needs the package x"}


def test_an_error_is_raised_or_kept():
    def fail(seed):
        raise RuntimeError("broken")

    cases = a_case(fail), a_case(lambda seed: {"f1": 1.0}, "two")
    with pytest.raises(RuntimeError, match="broken"):
        run_suite(a_suite(*cases))
    report = run_suite(a_suite(*cases), strict=False)
    assert report.failures == {"demo/data/task/one": "RuntimeError: broken"}
    assert [point.name for point in report.points] == ["demo/data/task/two"]


def test_metrics_that_are_not_defined_are_refused():
    with pytest.raises(ValueError, match=r"does not define the metrics \['auc'\]"):
        run_suite(a_suite(a_case(lambda seed: {"auc": 1.0})))


def test_definitions_and_sizes_do_not_mix():
    one = run_suite(a_suite(a_case(lambda seed: {"f1": 1.0})))
    other = Suite(name="other", metrics=(MetricDef(name="f1", direction="lower"),), cases=lambda quick: [])
    with pytest.raises(ValueError, match="define the metric 'f1' differently"):
        as_one_run([one, run_suite(other)])
    with pytest.raises(ValueError, match="all quick or all full"):
        as_one_run([one, run_suite(a_suite(), quick=False)])


@pytest.mark.parametrize("name", SUITES)
def test_suites_have_cases_quick_and_full_whose_definitions_fit(name):
    suite = find_suite(name)
    assert suite.name == name
    quick, full = suite.cases(True), suite.cases(False)
    assert not any(case.lacking for case in quick if case.role != "peer")
    for cases in (quick, full):
        points = [suite.point_name(case) for case in cases]
        assert len(set(points)) == len(points) > 0
    assert any(case.role == "subject" for case in quick)
    assert any(case.role == "control" for case in quick)


def test_definitions_of_all_suites_fit_together():
    reports = [run_suite(Suite(name=n, metrics=find_suite(n).metrics, cases=lambda quick: [])) for n in SUITES]
    assert set(as_one_run(reports).metric_defs) >= {"rmse", "f1", "average_precision", "seconds"}


def test_quick_suites_of_the_baseline_are_all_and_beat_their_controls():
    run = baseline()
    assert {point.scenario for point in run.points} == set(SUITES)
    values = {point.name: {name: metric.value for name, metric in point.metrics.items()} for point in run.points}
    spots = "deconvolution/pbmc_tissue/cell_type_proportions/"
    assert values[spots + "diffbio_sc"]["rmse"] < values[spots + "nnls"]["rmse"] < values[spots + "uniform"]["rmse"]
    genes = "spatial_genes/simulated/patterns/"
    assert values[genes + "diffbio_sc"]["average_precision"] > values[genes + "moran"]["average_precision"]
    assert values["peaks/simulated/bins/diffbio_sc"]["f1"] > values["peaks/simulated/bins/cut_off"]["f1"]
    states = "chromatin_states/simulated_bernoulli/states/"
    assert values[states + "true_model"]["accuracy"] - values[states + "diffbio_sc"]["accuracy"] < 0.01
    assert values[states + "diffbio_sc"]["accuracy"] > values[states + "clusters"]["accuracy"] + 0.1
    maps = "contacts/simulated/compartments/"
    name = "compartment_correlation"
    assert values[maps + "diffbio_sc"][name] > values[maps + "plain_eigenvector"][name] + 0.3


def test_other_seeds_of_a_suite_pass_against_the_baseline():
    report = run_suite(chromatin_states_suite.SUITE, seeds=[31, 32])
    result = compare(as_one_run([report]), baseline(), scenarios=["chromatin_states"])
    assert result.passed, result.summary()
    assert {row.verdict for row in result.rows} <= {"ok", "better", "info", "control"}


def test_kin_are_told_apart_by_one_modality_more_than_by_the_other():
    mdata = dbio.datasets.simulate_multiomics(n_cells=300, n_genes=200, n_peaks=300, rng=0)
    labels = mdata.obs["cell_type"].astype(str).to_numpy()
    distance = {}
    for name, modality in mdata.mod.items():
        means = np.array([modality.X[labels == f"type{k}"].mean(0) for k in range(6)])
        spread = np.array([modality.X[labels == f"type{k}"].var(0) for k in range(6)]).mean(0) + 1e-3
        distance[name] = [((means[2 * k] - means[2 * k + 1]) ** 2 / spread).sum() for k in range(3)]
    assert distance["rna"][0] > 1.5 * distance["rna"][1]
    assert distance["atac"][1] > 1.5 * distance["atac"][0]


def test_peaks_are_matched_one_to_one():
    truth = pd.DataFrame({"chrom": ["chr1"] * 3, "start": [100, 400, 900], "end": [200, 500, 1000], "peak": [50] * 3})
    called = pd.DataFrame(
        {"chrom": ["chr1"] * 3, "start": [90, 140, 880], "end": [600, 160, 990], "peak": [80, 10, 60]}
    )
    scores = peaks_suite.score(called, truth)
    # The first call takes the first summit, the second finds it taken and does not reach the next, the third hits.
    assert scores["precision"] == scores["recall"] == pytest.approx(2 / 3)
    assert scores["summit_error"] == pytest.approx((20 + 10) / 2)


def test_calls_on_maps_are_matched_one_to_one():
    found, truth = np.array([[5, 9], [6, 9], [30, 40]]), np.array([[6, 10], [31, 43]])
    assert contacts_suite.matched(found, truth).tolist() == [True, False, False]
    assert contacts_suite.matched(np.array([3, 50]), np.array([5, 51])).tolist() == [True, True]


def test_average_precision_is_that_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    truth, score = rng.random(200) < 0.3, rng.normal(size=200)
    expected = average_precision_score(truth, score)
    assert spatial_genes_suite.average_precision(score, truth) == pytest.approx(expected)


def seqfish_like(n_cells=1500, n_genes=80, seed=0):
    """Cells in the layout of squidpy's seqFISH file: counts, ``celltype_mapped_refined``, ``spatial``."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-3, 3, (n_cells, 2))
    kinds = np.array(["Endothelium", "Gut tube", "Neural crest", "Spinal cord"])
    kind = (place[:, 0] > 0).astype(int) + 2 * (place[:, 1] > 0)
    swapped = rng.random(n_cells) < 0.3
    kind[swapped] = rng.integers(0, 4, swapped.sum())
    mean = rng.gamma(0.5, 2.0, (4, n_genes))
    counts = sp.csr_matrix(rng.poisson(mean[kind] * rng.lognormal(0, 0.3, (n_cells, 1))).astype(np.float32))
    adata = ad.AnnData(counts, obs=pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)]))
    adata.var_names = [f"Gene{g}" for g in range(n_genes)]
    adata.obs["celltype_mapped_refined"] = pd.Categorical(kinds[kind])
    adata.obsm["spatial"] = place
    return adata


def test_m2_seqfish_goes_through_source_benchmark_store_and_guard(tmp_path):
    path = tmp_path / "seqfish.h5ad"
    seqfish_like().write_h5ad(path)
    source = SeqFISHSource(path, SeqFISHConfig(cells_per_spot=6))
    report = run_deconvolution_suite(source, seeds=(0, 1, 2))
    contract, artifact = report.metadata["modality_contract"], report.metadata["artifact_metadata"]
    assert contract["modalities"] == ["rna", "spatial"]
    assert contract["primary_modality"] == "rna"
    assert contract["label_key"] == "celltype_mapped_refined"
    assert artifact["artifact_id"] == "diffbio.spatial_deconvolution.proportions"
    assert artifact["artifact_type"] == "operator_output"
    assert artifact["modalities"] == ["rna", "spatial"]
    assert artifact["embedding_source"] == "in_process_operator"
    assert artifact["promotion_eligible"] is False
    assert artifact["provenance"]["source_type"] == "file"
    assert report.metadata["comparison"]["axes"] == ["dataset", "task", "variant"]

    rmse = {point.tags["variant"]: point.metrics["rmse"].value for point in report.points}
    assert rmse["diffbio_sc"] < 0.5 * rmse["uniform"]
    assert rmse["diffbio_sc"] <= 1.05 * rmse["nnls"]

    store, run = Store(tmp_path / "store"), as_one_run([report])
    store.save(run)
    store.set_baseline(run.id)
    assert store.get_baseline().metadata["suites"]["deconvolution"]["artifact_metadata"] == artifact
    again = as_one_run([run_deconvolution_suite(source, seeds=(3, 4, 5))])
    assert compare(again, store.get_baseline()).passed
    lost = [point for point in again.points if point.tags["variant"] != "nnls"]
    worse = as_one_run([report]).__class__(points=tuple(lost), metric_defs=again.metric_defs)
    assert [row.verdict for row in compare(worse, store.get_baseline()).regressions] == ["missing"]


def test_m2_bundled_deconvolution_benchmark_says_what_it_is():
    described = find_suite("deconvolution").describe(True)
    assert described["modality_contract"]["modalities"] == ["rna", "spatial"]
    assert described["artifact_metadata"]["provenance"]["source_type"] == "synthetic"
    assert described["artifact_metadata"]["stable_scope"] == "operator_support"
    assert described["comparison"]["baselines"] == ["uniform", "nnls"]

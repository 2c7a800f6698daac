from .contextual_suite import (
    check_contextual_epigenomics_suite_regressions,
    run_contextual_epigenomics_suite,
    save_contextual_epigenomics_suite_run,
)
from .deconvolution_suite import run_deconvolution_suite
from .guard import GuardResult, compare
from .records import Metric, MetricDef, Point, RecordError, Run
from .store import Store, StoreError, read_run, to_calibrax
from .suite import Case, Suite, SuiteReport, as_one_run, run_suite

__all__ = [
    "Case",
    "GuardResult",
    "Metric",
    "MetricDef",
    "Point",
    "RecordError",
    "Run",
    "Store",
    "StoreError",
    "Suite",
    "SuiteReport",
    "as_one_run",
    "check_contextual_epigenomics_suite_regressions",
    "compare",
    "read_run",
    "run_contextual_epigenomics_suite",
    "run_deconvolution_suite",
    "run_suite",
    "save_contextual_epigenomics_suite_run",
    "to_calibrax",
]

from .deconvolution_suite import deconvolution_suite, run_deconvolution_suite
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
    "compare",
    "deconvolution_suite",
    "read_run",
    "run_deconvolution_suite",
    "run_suite",
    "to_calibrax",
]

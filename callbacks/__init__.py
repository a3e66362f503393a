"""Everything that looks at a run; none of it changes a gradient."""

from callbacks.checkpoint import RunCheckpoint
from callbacks.denoising import Denoising
from callbacks.fid_kid import FIDKID
from callbacks.figure import ExperimentFigure
from callbacks.log_likelihood import LogLikelihood
from callbacks.predictions import Predictions
from callbacks.progress import ProgressBar, Throughput
from callbacks.regression_diagnostics import RegressionDiagnostics
from callbacks.results import ResultsFile
from callbacks.sample_grid import SampleGrid
from callbacks.traces import ParameterTraces

__all__ = [
    "FIDKID",
    "Denoising",
    "ExperimentFigure",
    "LogLikelihood",
    "ParameterTraces",
    "Predictions",
    "ProgressBar",
    "RegressionDiagnostics",
    "ResultsFile",
    "RunCheckpoint",
    "SampleGrid",
    "Throughput",
]

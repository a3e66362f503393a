"""Everything that looks at a run; none of it changes a gradient."""

from callbacks.blowfly import PopulationFigure
from callbacks.checkpoint import RunCheckpoint
from callbacks.clusters import Clusters
from callbacks.compile import Compile
from callbacks.component_map import ComponentMap
from callbacks.denoising import Denoising
from callbacks.factor_covariances import FactorCovariances
from callbacks.fid_kid import FIDKID
from callbacks.figure import ExperimentFigure
from callbacks.gp_hyperparameters import GaussianProcessHyperparameters
from callbacks.gradient_error import GradientError
from callbacks.image_statistics import ImageStatistics
from callbacks.interpolations import LatentInterpolations
from callbacks.linear_dynamics import KalmanComparison
from callbacks.log_likelihood import LogLikelihood
from callbacks.neighbours import NearestNeighbours
from callbacks.neural_process import NeuralProcessFigure
from callbacks.orientation_sweep import OrientationSweep
from callbacks.oscillator import Oscillator
from callbacks.predictions import Predictions
from callbacks.progress import ProgressBar, Throughput
from callbacks.regression_diagnostics import RegressionDiagnostics
from callbacks.results import ResultsFile
from callbacks.sample_grid import SampleGrid
from callbacks.source_recovery import SourceRecovery
from callbacks.spectrum import Spectrum
from callbacks.traces import ParameterTraces
from callbacks.voltage_figure import VoltageFigure

__all__ = [
    "FIDKID",
    "Clusters",
    "Compile",
    "ComponentMap",
    "Denoising",
    "ExperimentFigure",
    "FactorCovariances",
    "GaussianProcessHyperparameters",
    "GradientError",
    "ImageStatistics",
    "KalmanComparison",
    "LatentInterpolations",
    "LogLikelihood",
    "NearestNeighbours",
    "NeuralProcessFigure",
    "OrientationSweep",
    "Oscillator",
    "ParameterTraces",
    "PopulationFigure",
    "Predictions",
    "ProgressBar",
    "RegressionDiagnostics",
    "ResultsFile",
    "RunCheckpoint",
    "SampleGrid",
    "SourceRecovery",
    "Spectrum",
    "Throughput",
    "VoltageFigure",
]

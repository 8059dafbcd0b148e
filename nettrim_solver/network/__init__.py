"""Whole networks as arrays: operations, evaluation, calibration data, and pruning.

A :class:`Network` is a chain or graph of operations in plain numpy, whatever framework its weights
come from. Importing this package loads numpy alone.
"""

from .allocation import allocate, measure_paths
from .calibration import Calibration, LayerSignals, choose_rows, collect, collect_bytes
from .dead import DeadNeurons
from .gathering import Concatenate, Embedding, Part
from .graph import Network
from .layers import Conv2d, Dense, Layer
from .operations import (
    Activate,
    Add,
    Dropout,
    Flatten,
    Operation,
    Reshape,
    Softmax,
    Transpose,
)
from .output_refit import refit_output
from .paths import LayerPath
from .planning import LayerPlan, PruningPlan
from .plots import plot_paths, plot_result
from .pooling import AveragePool2d, GlobalAveragePool, MaxPool2d
from .probing import layer_path
from .progress import LayerProgress
from .prune import plan_network, prune_network
from .recipe import LayerRecipe, Recipe
from .report import write_report
from .result import LayerReport, PruningResult, Trial
from .scaling import Affine, BatchNorm
from .sparse_network import LayerChoice, SparseNetwork
from .stages import Stage
from .windows import Window, same_padding

__all__ = [
    "Activate",
    "Add",
    "Affine",
    "AveragePool2d",
    "BatchNorm",
    "Calibration",
    "Concatenate",
    "Conv2d",
    "DeadNeurons",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePool",
    "Layer",
    "LayerChoice",
    "LayerPath",
    "LayerPlan",
    "LayerProgress",
    "LayerRecipe",
    "LayerReport",
    "LayerSignals",
    "MaxPool2d",
    "Network",
    "Operation",
    "Part",
    "PruningPlan",
    "PruningResult",
    "Recipe",
    "Reshape",
    "Softmax",
    "SparseNetwork",
    "Stage",
    "Transpose",
    "Trial",
    "Window",
    "allocate",
    "choose_rows",
    "collect",
    "collect_bytes",
    "layer_path",
    "measure_paths",
    "plan_network",
    "plot_paths",
    "plot_result",
    "prune_network",
    "refit_output",
    "same_padding",
    "write_report",
]

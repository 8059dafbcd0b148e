"""Whole networks as arrays: operations, evaluation, calibration data, and pruning.

A :class:`Network` is a chain or graph of operations in plain numpy, whatever framework its weights
come from. Importing this package loads numpy alone.
"""

from .allocation import allocate, measure_paths
from .calibration import Calibration, LayerSignals, choose_rows, collect, collect_bytes
from .choices import LayerSettings
from .dead import DeadNeurons
from .graph import Network
from .layers import Conv2d, Dense, Layer
from .modes import LayerProgress, plan_network, prune_network
from .operations import (
    Activate,
    Add,
    Affine,
    BatchNorm,
    Dropout,
    Flatten,
    Operation,
    Reshape,
    Softmax,
    Transpose,
)
from .paths import LayerPath, layer_path, plot_paths
from .planning import LayerPlan, PruningPlan
from .pooling import AveragePool2d, GlobalAveragePool, MaxPool2d
from .result import LayerReport, PruningResult
from .search import BudgetResult, SearchProgress, Trial, prune_network_to
from .windows import Window, same_padding

__all__ = [
    "Activate",
    "Add",
    "Affine",
    "AveragePool2d",
    "BatchNorm",
    "BudgetResult",
    "Calibration",
    "Conv2d",
    "DeadNeurons",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAveragePool",
    "Layer",
    "LayerPath",
    "LayerPlan",
    "LayerProgress",
    "LayerReport",
    "LayerSettings",
    "LayerSignals",
    "MaxPool2d",
    "Network",
    "Operation",
    "PruningPlan",
    "PruningResult",
    "Reshape",
    "SearchProgress",
    "Softmax",
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
    "prune_network",
    "prune_network_to",
    "same_padding",
]

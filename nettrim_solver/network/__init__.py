"""Whole networks as arrays: operations, evaluation, calibration data, and pruning.

A :class:`Network` is a chain or graph of operations in plain numpy, whatever framework its weights
come from. Importing this package loads numpy alone.
"""

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
from .planning import LayerPlan, PruningPlan
from .pooling import AveragePool2d, GlobalAveragePool, MaxPool2d
from .result import LayerReport, PruningResult
from .windows import Window, same_padding

__all__ = [
    "Activate",
    "Add",
    "Affine",
    "AveragePool2d",
    "BatchNorm",
    "Calibration",
    "Conv2d",
    "DeadNeurons",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAveragePool",
    "Layer",
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
    "Softmax",
    "Transpose",
    "Window",
    "choose_rows",
    "collect",
    "collect_bytes",
    "plan_network",
    "prune_network",
    "same_padding",
]

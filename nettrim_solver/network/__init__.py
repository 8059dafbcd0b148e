"""Whole networks as arrays: operations, evaluation, calibration data.

A :class:`Network` is a chain or graph of operations in plain numpy, whatever framework its weights
come from. Importing this package loads numpy alone.
"""

from .calibration import Calibration, LayerSignals, choose_rows, collect, collect_bytes
from .graph import Network
from .layers import Conv2d, Dense, Layer
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
from .pooling import AveragePool2d, GlobalAveragePool, MaxPool2d
from .windows import Window, same_padding

__all__ = [
    "Activate",
    "Add",
    "Affine",
    "AveragePool2d",
    "BatchNorm",
    "Calibration",
    "Conv2d",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAveragePool",
    "Layer",
    "LayerSignals",
    "MaxPool2d",
    "Network",
    "Operation",
    "Reshape",
    "Softmax",
    "Transpose",
    "Window",
    "choose_rows",
    "collect",
    "collect_bytes",
    "same_padding",
]

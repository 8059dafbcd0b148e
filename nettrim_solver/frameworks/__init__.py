"""Networks from other places: each module reads a :class:`.Network` in and writes it back.

A module imports its framework only when it is called.
"""

from ..network.gathering import join_inputs
from .keras import from_keras, keep_zeros_callback, to_keras
from .npz import from_npz, to_npz
from .onnx import from_onnx, inspect_onnx, to_onnx
from .sklearn import calibration_inputs, from_sklearn, to_sklearn
from .torch import calibration_batches, from_torch, keep_zeros, to_torch
from .torch_training import fine_tune

__all__ = [
    "calibration_batches",
    "calibration_inputs",
    "fine_tune",
    "from_keras",
    "from_npz",
    "from_onnx",
    "from_sklearn",
    "from_torch",
    "inspect_onnx",
    "join_inputs",
    "keep_zeros",
    "keep_zeros_callback",
    "to_keras",
    "to_npz",
    "to_onnx",
    "to_sklearn",
    "to_torch",
]

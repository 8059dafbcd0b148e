"""Networks from other places: each module reads a :class:`.Network` in and writes it back.

A module imports its framework only when it is called.
"""

from .npz import from_npz, to_npz
from .sklearn import calibration_inputs, from_sklearn, to_sklearn
from .torch import calibration_batches, from_torch, keep_zeros, to_torch

__all__ = [
    "calibration_batches",
    "calibration_inputs",
    "from_npz",
    "from_sklearn",
    "from_torch",
    "keep_zeros",
    "to_npz",
    "to_sklearn",
    "to_torch",
]

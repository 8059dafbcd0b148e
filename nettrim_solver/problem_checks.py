"""The checks of single arguments of a problem; each raises ProblemError, naming the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .activations import RANGE_SLACK, Activation
from .exceptions import ProblemError


def checked_choice(name: str, value: Any, options: tuple[str, ...]) -> Any:
    """Return the value if it is one of the options."""
    if not isinstance(value, str) or value not in options:
        raise ProblemError(f"{name} must be one of {list(options)}, but was {value!r}")
    return value


def numeric(name: str, value: Any) -> NDArray[Any]:
    """Return a real float32 or float64 array; integers and booleans become float64."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ProblemError(f"{name} must be an array of numbers, but was ragged: {error}") from None
    if array.dtype.kind not in "fiub":
        raise ProblemError(f"{name} must hold real numbers, but has dtype {array.dtype}")
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def checked_matrix(name: str, value: Any, allow_sparse: bool = False) -> Any:
    """Return a finite, C-contiguous (or CSR) read-only matrix that no caller can see changed."""
    if sp.issparse(value):
        if not allow_sparse:
            raise ProblemError(f"{name} must be a dense array, but is scipy.sparse")
        if value.ndim != 2:
            raise ProblemError(f"{name} must have 2 dimensions, but has {value.ndim}")
        # By dtype, for the entries of LIL and DOK lie in Python lists and dicts.
        dtype = numeric(name, np.empty(0, dtype=value.dtype)).dtype
        matrix = sp.csr_array(value.astype(dtype))
        matrix.sum_duplicates()
        entries = matrix.data
    else:
        array = numeric(name, value)
        if array.ndim == 1 and name != "X":
            array = array[:, None]
        if array.ndim != 2:
            raise ProblemError(f"{name} must have 2 dimensions, but has {array.ndim}")
        entries = array
        matrix = read_only(np.ascontiguousarray(array))
    if 0 in matrix.shape:
        raise ProblemError(f"{name} must not be empty, but has shape {matrix.shape}")
    if not np.isfinite(entries).all():
        count = int(entries.size - np.isfinite(entries).sum())
        raise ProblemError(f"{name} must be finite, but holds {count} NaN or infinite entries")
    return matrix


def checked_vector(name: str, value: Any, size: int, what: str) -> NDArray[Any]:
    """Return a read-only real vector of the given size."""
    vector = numeric(name, value)
    if vector.shape != (size,):
        raise ProblemError(f"{name} must have shape ({what},) = ({size},), but has {vector.shape}")
    return read_only(vector)


def checked_box(lower: Any, upper: Any, n_samples: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the ends of a box, read-only matrices with lower <= upper and no NaN."""
    ends = []
    for name, value in (("lower", lower), ("upper", upper)):
        array = numeric(name, value)
        array = array[:, None] if array.ndim == 1 else array
        if array.ndim != 2 or array.size == 0:
            raise ProblemError(f"{name} must be a non-empty matrix, but has shape {array.shape}")
        if np.isnan(array).any():
            count = int(np.isnan(array).sum())
            raise ProblemError(f"{name} must not hold NaN, but holds {count}")
        check_match(name, array.shape[0], "X", n_samples, "samples (rows)")
        ends.append(array)
    low, high = ends
    if low.shape != high.shape:
        raise ProblemError(f"lower has shape {low.shape}, but upper has shape {high.shape}")
    bad = int(np.sum((low > high) | (low == np.inf) | (high == -np.inf)))
    if bad:
        raise ProblemError(
            f"lower must be <= upper (and not +inf, nor upper -inf), but {bad} entries are not"
        )
    return read_only(low), read_only(high)


def check_range(Y: NDArray[Any], activation: Activation, name: str = "Y") -> None:
    """Check that outputs lie in the range of their activation, but for rounding."""
    least, greatest = activation.range
    slack = RANGE_SLACK if activation.needs_preactivation or np.isfinite(greatest) else 0.0
    low, high = float(Y.min()), float(Y.max())
    if low < least - slack or high > greatest + slack:
        raise ProblemError(
            f"{name} must lie in the range [{least:g}, {greatest:g}] of {activation.name!r}, "
            f"but spans [{low:g}, {high:g}]"
        )


def check_match(name: str, n: int, other: str, n_other: int, what: str) -> None:
    """Check that two arguments have the same length along what they share."""
    if n != n_other:
        raise ProblemError(f"{name} has {n} {what}, but {other} has {n_other}")


def read_only(array: NDArray[Any]) -> Any:
    """Return a view that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view

"""The checks of single arguments of a problem; each raises ProblemError, naming the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .activations import RANGE_SLACK, Activation
from .checks import as_array
from .exceptions import ProblemError


def checked_choice(name: str, value: Any, options: tuple[str, ...]) -> Any:
    """Return the value if it is one of the options."""
    if not isinstance(value, str) or value not in options:
        raise ProblemError(f"{name} must be one of {list(options)}, but was {value!r}")
    return value


#: Range of the largest entry of a matrix: squares of such sizes neither overflow nor vanish.
SMALLEST, LARGEST = 1e-60, 1e60


def plain_array(name: str, value: Any) -> NDArray[Any]:
    """Return what a caller gave as an ordinary array, or say what it is instead.

    Tensors that need a gradient are detached and copied to the host; half precision without a
    numpy dtype (bfloat16) becomes float32. Hidden entries of a masked array have no value, so they
    are refused.
    """
    if callable(getattr(value, "detach", None)):
        value = _detached(name, value)
    array = as_array(name, value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _detached(name: str, tensor: Any) -> Any:
    """Return a tensor without its gradient, on the host, in a dtype that numpy has."""
    if str(getattr(tensor, "layout", "torch.strided")) != "torch.strided":
        raise ProblemError(
            f"{name} must be a dense array, but is a tensor of layout {tensor.layout}; "
            "pass tensor.to_dense(), or a scipy.sparse matrix for X"
        )
    tensor = tensor.detach()
    if callable(getattr(tensor, "cpu", None)):
        tensor = tensor.cpu()
    return tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor


def numeric(name: str, value: Any) -> NDArray[Any]:
    """Return a real float32 or float64 array; integers and booleans become float64."""
    array = plain_array(name, value)
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
        if value.format in ("csr", "csc"):
            rows, columns = value.shape if value.format == "csr" else value.shape[::-1]
            fault = csr_fault(value.data, value.indices, value.indptr, rows, columns)
            if fault is not None:
                raise ProblemError(f"{name} is no sparse matrix in {value.format} form: {fault}")
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
    check_size(name, entries)
    return matrix


def csr_fault(data: Any, indices: Any, indptr: Any, n_rows: int, n_columns: int) -> str | None:
    """Return what is wrong with the parts of a matrix in CSR form, or None.

    scipy's own check looks at the ends of `indptr` alone; what lies between them decides where its
    compiled loops read and write. (Of a matrix in CSC form rows are columns.)
    """
    for name, part in (("data", data), ("indices", indices), ("indptr", indptr)):
        if part.ndim != 1 or (name != "data" and part.dtype.kind not in "iu"):
            return f"{name} has dtype {part.dtype} and shape {part.shape}"
    if len(indptr) != n_rows + 1:
        return f"indptr must have {n_rows + 1} entries, but has {len(indptr)}"
    if len(data) < int(indptr[-1]) or len(indices) < int(indptr[-1]):
        return f"indptr ends at {int(indptr[-1])}, but there are {len(indices)} indices"
    # int64 first: differences of unsigned numbers do not fall.
    if indptr[0] != 0 or np.any(np.diff(indptr.astype(np.int64)) < 0):
        return "indptr must rise from 0"
    used = indices[: int(indptr[-1])]
    if len(used) and not (0 <= int(used.min()) and int(used.max()) < n_columns):
        return f"indices must lie in [0, {n_columns}), but span [{used.min()}, {used.max()}]"
    return None


def check_size(name: str, entries: NDArray[Any]) -> None:
    """Check that the largest entry is zero, or of a size whose square can be computed with."""
    if entries.dtype == np.float32 or entries.size == 0:
        return
    largest = max(float(entries.max()), -float(entries.min()))
    if largest != 0.0 and not SMALLEST <= largest <= LARGEST:
        raise ProblemError(
            f"the largest entry of {name} must be 0 or lie between {SMALLEST:g} and {LARGEST:g}, "
            f"but is {largest:g}; give the data in other units"
        )
    if entries.ndim == 2:
        largest_of = np.maximum(entries.max(axis=0), -entries.min(axis=0))
        tiny = np.flatnonzero((largest_of > 0) & (largest_of < SMALLEST**2))
        if len(tiny) and name != "X":
            raise ProblemError(
                f"the largest entry of every column of {name} must be 0 or at least "
                f"{SMALLEST**2:g}, but that of column {tiny[0]} is {largest_of[tiny[0]]:g}"
            )


def check_weight_size(X: Any, target: float, dtype: Any) -> None:
    """Check that weights of the size of the targets over the inputs exist in their dtype."""
    entries = X.data if sp.issparse(X) else X
    size = float(np.abs(entries).max(initial=0.0))
    if dtype == np.float32 and size > 0.0 and target > 0.0:
        if not 1e-30 <= target / size <= 1e30:
            raise ProblemError(
                f"weights about {target / size:.0e}, the targets over the inputs, cannot be held "
                "in float32, the dtype of X; give X as float64, or in other units"
            )


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
        check_size(name, np.where(np.isfinite(array), array, 0.0))
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

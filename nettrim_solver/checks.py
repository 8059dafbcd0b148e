"""Checks of settings and arrays, in one wording: the name, what it must be, and what it was."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .exceptions import ProblemError, SettingsError


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise SettingsError unless value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise SettingsError(f"{name} must be an integer >= {least}, but was {value!r}")


def check_number(name: str, value: Any, low: float, high: float, closed: bool = False) -> None:
    """Raise SettingsError unless value is a number in (low, high), or [low, high) if closed."""
    numeric: Any = isinstance(value, Real) and not isinstance(value, bool)
    if not numeric or not (low < value < high or (closed and value == low)):
        bracket = "[" if closed else "("
        raise SettingsError(f"{name} must lie in {bracket}{low:g}, {high:g}), but was {value!r}")


def check_choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    """Raise SettingsError unless value is one of the options."""
    if not isinstance(value, str) or value not in options:
        raise SettingsError(f"{name} must be one of {list(options)}, but was {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise SettingsError unless value is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise SettingsError(f"{name} must be True or False, but was {value!r}")


def check_options(name: str, value: Any) -> None:
    """Raise SettingsError unless value is a dictionary or None."""
    if value is not None and not isinstance(value, dict):
        raise SettingsError(f"{name} must be a dict, but was {value!r}")


def check_time_limit(value: Any) -> None:
    """Raise SettingsError unless value is None or a positive number of seconds."""
    if value is not None:
        check_number("time_limit", value, 0.0, np.inf)


# Arrays ------------------------------------------------------------------------------------------


def refuse_masked(name: str, value: Any) -> None:
    """Raise ProblemError if a masked array, or one inside a list, hides any entry.

    numpy drops the mask of such an array when it is converted, and the values behind it would be
    taken for data.
    """
    hidden = _count_masked(value)
    if hidden:
        raise ProblemError(
            f"{name} must have no masked entries, but {hidden} are masked: fill them, as "
            "numpy.ma.filled(X, 0) does, or leave their rows out, as numpy.ma.compress_rows(X) does"
        )


def _count_masked(value: Any) -> int:
    if isinstance(value, np.ma.MaskedArray):
        return int(np.count_nonzero(np.ma.getmaskarray(value)))
    if isinstance(value, (list, tuple)):
        return sum(_count_masked(one) for one in value if not isinstance(one, (float, int)))
    return 0


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Return an array_like as an array of whatever dtype it has; no copy of one that is an array.

    Tables of numeric, nullable and boolean columns become float64, missing entries NaN.

    Raises
    ------
    ProblemError
        For masked entries, ragged lists, tables with columns of text, and tensors that their
        framework does not convert: half precision, sparse, on a device, or part of a gradient.
    """
    refuse_masked(name, value)
    try:
        array = np.asarray(value)
        if array.dtype == object and hasattr(value, "to_numpy") and array.ndim == 2:
            return _table(name, value)
    except Exception as error:
        # Whatever a foreign array type raises where it cannot be one of numpy's.
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        ragged = isinstance(value, (list, tuple)) and isinstance(error, ValueError)
        what = "was ragged" if ragged else f"is a {type(value).__name__} that numpy cannot read"
        raise ProblemError(
            f"{name} must be an array of numbers, but {what}: {said}{_steps(value)}"
        ) from None
    return array


def _table(name: str, frame: Any) -> NDArray[Any]:
    """Return the columns of a DataFrame as float64, or raise for those that hold no numbers."""
    frame = frame.infer_objects()
    odd = [
        str(column)
        for column, dtype in zip(frame.columns, frame.dtypes, strict=True)
        if getattr(dtype, "kind", "O") not in "fiub"
    ]
    if odd:
        raise ProblemError(
            f"{name} must hold real numbers, but has dtype object: the columns {odd[:5]} hold "
            "something else; drop or encode them, as pandas.get_dummies does"
        )
    return np.asarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))


def _steps(value: Any) -> str:
    """Return the methods of a torch tensor that make it one that numpy takes."""
    if not hasattr(value, "detach"):
        return ""
    steps = [
        (".detach()", getattr(value, "requires_grad", False)),
        (".to_dense()", "strided" not in str(getattr(value, "layout", "strided"))),
        (".dequantize()", getattr(value, "is_quantized", False)),
        (".cpu()", str(getattr(value, "device", "cpu")) != "cpu"),
        (".float()", "bfloat16" in str(value.dtype) or "float8" in str(value.dtype)),
    ]
    return f"; give tensor{''.join(step for step, needed in steps if needed)}"


def layout_remedy(given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Return how samples of one shape get another, in words for a message; empty if unknown.

    Images whose channels are at the other end are transposed: reshaping would mix their pixels.

    Parameters
    ----------
    given, wanted : tuple of int
        Shapes of one sample.

    Examples
    --------
    >>> layout_remedy((8, 8, 3), (3, 8, 8))
    '; numpy.moveaxis(X, -1, 1) puts the channels first'
    >>> layout_remedy((8, 8), (1, 8, 8))
    '; X.reshape(-1, 1, 8, 8) has it'
    """
    if given == wanted or len(given) < 1 or int(np.prod(given)) != int(np.prod(wanted)):
        return ""
    if tuple(n for n in given if n != 1) == tuple(n for n in wanted if n != 1):
        return f"; X.reshape{(-1, *wanted)} has it"
    if (given[-1], *given[:-1]) == wanted:
        return "; numpy.moveaxis(X, -1, 1) puts the channels first"
    if (*given[1:], given[0]) == wanted:
        return "; numpy.moveaxis(X, 1, -1) puts the channels last"
    if len(wanted) == 1 or len(given) == 1:
        return (
            f"; X.reshape{(-1, *wanted)} has it, if pixels and channels then stand in the order "
            "that the model was trained with"
        )
    return ""


# Text --------------------------------------------------------------------------------------------


def printable(text: Any) -> str:
    r"""Return text without characters that a terminal acts on or hides; they are escaped.

    Names come from files, and may hold escape sequences.

    Examples
    --------
    >>> print(printable("fc\x1b[2J"))
    fc\x1b[2J
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "replace").decode("ascii")
        for one in str(text)
    )

"""Checks of settings, in one wording: the name, what it must be, and what it was."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from .exceptions import SettingsError


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

"""The checks of settings: what passes, and what the message of the rest says."""

from fractions import Fraction

import numpy as np
import pytest

from nettrim_solver import checks
from nettrim_solver.exceptions import SettingsError

GOOD = [
    lambda: checks.check_integer("n", 0, 0),
    lambda: checks.check_integer("n", np.int8(3), 3),
    lambda: checks.check_integer("n", 10**400, 1),
    lambda: checks.check_number("x", 0, 0.0, 1.0, closed=True),
    lambda: checks.check_number("x", np.float32(0.5), 0.0, 1.0),
    lambda: checks.check_number("x", Fraction(1, 3), 0.0, 1.0),
    lambda: checks.check_number("x", 10**400, 0.0, np.inf),
    lambda: checks.check_choice("c", "a", ("a", "b")),
    lambda: checks.check_flag("f", True),
    lambda: checks.check_flag("f", np.False_),
    lambda: checks.check_options("o", None),
    lambda: checks.check_options("o", {"verbose": True}),
    lambda: checks.check_time_limit(None),
    lambda: checks.check_time_limit(1),
]

BAD = [
    (lambda: checks.check_integer("n", 2, 3), "n must be an integer >= 3, but was 2"),
    (lambda: checks.check_integer("n", 3.0, 1), "n must be an integer >= 1, but was 3.0"),
    (lambda: checks.check_integer("n", True, 1), "n must be an integer >= 1, but was True"),
    (lambda: checks.check_integer("n", "3", 1), "n must be an integer >= 1, but was '3'"),
    (lambda: checks.check_number("x", 0.0, 0.0, 1.0), "x must lie in (0, 1), but was 0.0"),
    (lambda: checks.check_number("x", 1, 0.0, 1.0, True), "x must lie in [0, 1), but was 1"),
    (lambda: checks.check_number("x", np.nan, 0.0, 1.0), "x must lie in (0, 1), but was nan"),
    (lambda: checks.check_number("x", np.inf, 0.0, np.inf), "x must lie in (0, inf), but was inf"),
    (lambda: checks.check_number("x", 0.5j, 0.0, 1.0), "x must lie in (0, 1), but was 0.5j"),
    (lambda: checks.check_number("x", True, 0.0, 2.0), "x must lie in (0, 2), but was True"),
    (lambda: checks.check_number("x", "1", 0.0, 2.0), "x must lie in (0, 2), but was '1'"),
    (
        lambda: checks.check_number("x", np.ones(1), 0.0, 2.0),
        "x must lie in (0, 2), but was array([1.])",
    ),
    (lambda: checks.check_choice("c", "z", ("a", "b")), "c must be one of ['a', 'b'], but was 'z'"),
    (lambda: checks.check_choice("c", 1, ("a", "b")), "c must be one of ['a', 'b'], but was 1"),
    (lambda: checks.check_flag("f", 1), "f must be True or False, but was 1"),
    (lambda: checks.check_options("o", [1]), "o must be a dict, but was [1]"),
    (lambda: checks.check_time_limit(0), "time_limit must lie in (0, inf), but was 0"),
]


@pytest.mark.parametrize("check", GOOD)
def test_what_is_in_range_passes(check):
    check()


@pytest.mark.parametrize(("check", "message"), BAD, ids=[message for _, message in BAD])
def test_what_is_not_is_named(check, message):
    with pytest.raises(SettingsError) as caught:
        check()
    assert str(caught.value) == message

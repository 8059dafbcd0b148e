"""Activations: preimages, ranges, Lipschitz constants, parameters."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import Problem, activations
from nettrim_solver.activations import ACTIVATIONS, RANGE_SLACK, get_activation
from nettrim_solver.exceptions import ProblemError

from .tolerances import TOLERANCE

#: Every activation with its own parameters, and those that take any with others.
EXAMPLES = [
    *(cls() for cls in ACTIVATIONS.values()),
    activations.LeakyReLU(0.3),
    activations.LeakyReLU(2.5),
    activations.PReLU([0.1, 0.7, 1.5]),
    activations.ClippedReLU(1.5),
    activations.HardSigmoid(0.2, 0.4),
    activations.ELU(0.4),
    activations.ELU(3.0),
    activations.GELU(approximate=True),
]
INVERTIBLE = [a for a in EXAMPLES if not a.needs_preactivation]
STORED = [a for a in EXAMPLES if a.needs_preactivation]


def outputs_of(activation):
    """Y of shape (n, 3) inside the range, with its ends drawn often."""
    least, greatest = np.clip(activation.range, -1e6, 1e6)
    value = st.floats(least, greatest, allow_subnormal=False)
    ends = st.sampled_from([least, greatest, min(max(0.0, least), greatest)])
    rows = st.lists(st.tuples(*[st.one_of(value, ends)] * 3), min_size=1, max_size=8)
    return rows.map(lambda rows: np.array(rows, dtype=np.float64))


def test_every_activation_has_a_name():
    classes = [activations.Activation]
    for cls in classes:
        classes += cls.__subclasses__()
    public = {
        cls
        for cls in classes[1:]
        if cls.__module__ == activations.__name__ and not cls.__name__.startswith("_")
    }
    assert public == set(ACTIVATIONS.values())
    assert all(ACTIVATIONS[name].name == name for name in ACTIVATIONS)


@pytest.mark.parametrize("activation", INVERTIBLE, ids=repr)
@given(data=st.data())
def test_every_point_of_the_preimage_gives_the_output(activation, data):
    Y = data.draw(outputs_of(activation))
    lower, upper = activation.preimage(Y)
    assert lower.shape == upper.shape == Y.shape
    assert np.all(lower <= upper)
    assert np.all(np.isfinite(lower) | np.isfinite(upper))
    low = np.where(np.isfinite(lower), lower, upper - 50.0)
    high = np.where(np.isfinite(upper), upper, lower + 50.0)
    for share in (0.0, data.draw(st.floats(0, 1)), 1.0):
        # Clipped, because the weighted mean of two equal numbers may round off them.
        point = np.clip((1 - share) * low + share * high, low, high)
        error = np.abs(activation(point) - Y)
        assert np.all(error <= TOLERANCE["preimage"] * np.maximum(1.0, np.abs(Y)))


@pytest.mark.parametrize("activation", INVERTIBLE, ids=repr)
@given(data=st.data())
def test_the_preimage_holds_every_point_that_gives_the_output(activation, data):
    row = st.tuples(*[st.floats(-20, 20, allow_subnormal=False)] * 3)
    Z = np.array(data.draw(st.lists(row, min_size=1, max_size=8)))
    lower, upper = activation.preimage(activation(Z))
    distance = np.abs(Z - np.clip(Z, lower, upper))
    # The inverse of a slope s < 1 magnifies the rounding of f(z) by 1 / s.
    assert np.all(distance <= 10 * TOLERANCE["preimage"] * np.maximum(1.0, np.abs(Z)))


@pytest.mark.parametrize("activation", EXAMPLES, ids=repr)
def test_lipschitz_constant_holds_and_is_tight(activation):
    z = np.arange(-20, 20, 1e-4)
    Z = np.column_stack([z, z, z])
    slopes = np.abs(np.diff(activation(Z), axis=0)) / np.diff(Z, axis=0)
    assert slopes.max() <= activation.lipschitz + TOLERANCE["lipschitz_rounding"]
    assert slopes.max() >= activation.lipschitz * (1 - TOLERANCE["lipschitz_slack"])


@pytest.mark.parametrize("activation", EXAMPLES, ids=repr)
def test_outputs_stay_in_the_range_and_reach_its_finite_ends(activation):
    z = np.concatenate([np.arange(-40, 40, 1e-3), [-1e4, 1e4]])
    Y = activation(np.column_stack([z, z, z]))
    least, greatest = activation.range
    assert least - RANGE_SLACK <= Y.min() and Y.max() <= greatest + RANGE_SLACK
    # GELU has one range for both of its forms, whose minima differ by 8e-5.
    for end, reached in ((least, Y.min()), (greatest, Y.max())):
        assert not np.isfinite(end) or abs(reached - end) < TOLERANCE["range_end"]


@pytest.mark.parametrize("activation", EXAMPLES, ids=repr)
def test_parameters_rebuild_the_activation_through_json(activation):
    parameters = json.loads(json.dumps(activation.parameters()))
    rebuilt = type(activation)(**parameters)
    assert rebuilt == activation and hash(rebuilt) == hash(activation)
    assert eval(repr(activation), vars(activations)) == activation


def test_equality_tells_parameters_and_types_apart():
    assert activations.ELU(1.0) != activations.ELU(2.0)
    assert activations.ReLU6() != activations.ClippedReLU(6.0)
    assert activations.ReLU() != "relu"
    assert get_activation("relu") == activations.ReLU()
    activation = activations.ELU(0.4)
    assert get_activation(activation) is activation


def test_prelu_selects_the_slopes_of_its_outputs():
    activation = activations.PReLU([0.1, 0.2, 0.4])
    assert activation.select(slice(1, 3)) == activations.PReLU([0.2, 0.4])
    assert activation.select([2, 0]) == activations.PReLU([0.4, 0.1])
    shared = activations.PReLU(0.3)
    assert shared.select(slice(1, 3)) is shared


@pytest.mark.parametrize("activation", STORED, ids=repr)
def test_stored_activations_take_the_preactivation_as_their_box(activation):
    Z = np.linspace(-3, 3, 12).reshape(4, 3)
    problem = Problem(np.eye(4), activation(Z), Z=Z, activation=activation)
    lower, upper = problem.box()
    np.testing.assert_array_equal(lower, Z)
    np.testing.assert_array_equal(upper, Z)
    with pytest.raises(NotImplementedError, match=f"{activation.name}.*store Z"):
        activation.preimage(Z)


@pytest.mark.parametrize(
    "activation", [a for a in EXAMPLES if np.isfinite(a.range).any()], ids=repr
)
@pytest.mark.parametrize("side", [0, 1])
def test_problem_refuses_outputs_beyond_a_finite_end(activation, side):
    end = activation.range[side]
    if not np.isfinite(end):
        end, side = activation.range[1 - side], 1 - side
    Y = np.full((2, 3), end + (1e-3 if side else -1e-3))
    with pytest.raises(ProblemError, match=r"Y must lie in the range .* but spans"):
        Problem(np.eye(2), Y, Z=np.zeros((2, 3)), activation=activation)


@pytest.mark.parametrize("name", ["relu6", "hard_tanh", "hard_sigmoid"])
def test_single_precision_overshoot_is_the_end_itself(name):
    activation = get_activation(name)
    least, greatest = activation.range
    Y = np.array([[greatest + RANGE_SLACK / 2], [least - RANGE_SLACK / 2]])
    lower, upper = Problem(np.eye(2), Y, activation=name).box()
    assert upper[0, 0] == np.inf and lower[1, 0] == -np.inf
    assert np.isfinite(lower[0, 0]) and np.isfinite(upper[1, 0])

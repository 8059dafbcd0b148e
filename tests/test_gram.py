"""The least-squares data of a layer: against its definition, for every kind of input."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from nettrim_solver import Problem
from nettrim_solver.exceptions import ProblemError
from nettrim_solver.solvers import gram as module
from nettrim_solver.solvers.gram import cholesky, gram

from .tolerances import TOLERANCE

ARRAYS = ("H", "G", "W", "squares", "mean", "target_mean", "raw_norms")


def problem_of(layer, **changes):
    return Problem(**{"X": layer.X, "Y": layer.Y, "W": layer.W, "b": layer.b} | changes)


def centred(problem, solve_intercept):
    """X and T as the definition has them, from whole arrays."""
    X = problem.X.toarray() if sp.issparse(problem.X) else problem.X
    X = X.astype(np.float64)
    b = np.zeros(problem.n_outputs) if problem.b is None else problem.b
    Z = X @ problem.W + b if problem.Z is None else problem.Z
    T = np.clip(Z, *problem.box())
    if solve_intercept:
        return X - X.mean(axis=0), T - T.mean(axis=0)
    return X, T - b


def assert_close(actual, expected, tolerance="reordered"):
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[tolerance] * scale)


KINDS = {
    "plain": {},
    "identity": {"activation": "identity"},
    "a target of its own": {"Y": np.abs(np.random.default_rng(1).standard_normal((30, 4)))},
    "no intercept": {"intercept": False, "b": None},
    "no trained intercept": {"b": None},
}


@pytest.mark.parametrize("block_entries", [8, 56, 10**6])
@pytest.mark.parametrize("solve_intercept", [True, False])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_definition_for_blocks_of_any_size(
    layer, monkeypatch, changes, solve_intercept, block_entries
):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", block_entries)
    problem = problem_of(layer, **changes)
    solve_intercept &= problem.intercept
    data = gram(problem, solve_intercept=solve_intercept)
    X, T = centred(problem, solve_intercept)
    assert_close(data.H, X.T @ X)
    assert_close(data.G, X.T @ T)
    assert_close(data.squares, np.sum(T**2, axis=0))
    assert_close(data.raw_norms, np.linalg.norm(problem.X, axis=0))
    np.testing.assert_array_equal(data.H, data.H.T)
    np.testing.assert_array_equal(data.W, problem.W)
    assert not data.dead.any() and data.n_samples == 30


def test_stored_preactivations_are_the_target(layer):
    Z = layer.X @ layer.W + layer.b
    X = layer.X + 0.1  # behind pruned layers
    problem = Problem(X, np.tanh(Z), layer.W, layer.b, activation="tanh", Z=Z)
    assert_close(gram(problem, solve_intercept=False).G, X.T @ (Z - layer.b))


@pytest.mark.parametrize("solve_intercept", [True, False])
def test_storage_does_not_matter(layer, tmp_path, solve_intercept):
    X = np.where(layer.X > 0.5, layer.X, 0.0)
    mapped = np.memmap(tmp_path / "X", dtype=np.float64, mode="w+", shape=X.shape)
    mapped[:] = X
    dense, sparse, on_disk = (
        gram(problem_of(layer, X=stored), solve_intercept=solve_intercept)
        for stored in (X, sp.csc_array(X), mapped)
    )
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(sparse, name), getattr(dense, name))
        np.testing.assert_array_equal(getattr(on_disk, name), getattr(dense, name))


def test_float32_samples_are_summed_in_float64(layer):
    problem = problem_of(layer, X=layer.X.astype(np.float32))
    data = gram(problem, solve_intercept=True)
    X, T = centred(problem, True)
    assert_close(data.H, X.T @ X)
    assert_close(data.G, X.T @ T)
    assert all(getattr(data, name).dtype == np.float64 for name in ARRAYS)


@pytest.mark.parametrize("offset", [1e3, 1e8])
def test_a_far_mean_loses_no_digits(layer, monkeypatch, offset):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 56)
    # Steps of 2^-10 are exact beside either offset.
    X = np.round(layer.X * 2**10) / 2**10
    near, far = (
        gram(problem_of(layer, X=x, b=None, activation="identity"), solve_intercept=True)
        for x in (X, X + offset)
    )
    assert not far.dead.any()
    assert_close(far.H, near.H)


# Dead inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_and_constants_are_dead(layer, dtype):
    X = layer.X.astype(dtype)
    X[:, 2], X[:, 5] = 0.0, 0.1
    X[:, 6] += 1e4  # alive, but float32 has three digits left of it
    Z = X.astype(np.float64) @ layer.W + layer.b
    problem = problem_of(layer, X=X, Y=np.maximum(Z, 0.0))
    solved = gram(problem, solve_intercept=True)
    kept = gram(problem, solve_intercept=False)
    assert np.flatnonzero(solved.dead).tolist() == [2, 5]
    assert np.flatnonzero(kept.dead).tolist() == [2]
    for data in (solved, kept):
        assert not data.W[data.dead].any() and not data.G[data.dead].any()
        np.testing.assert_array_equal(data.H[data.dead], np.eye(8)[data.dead])
        np.testing.assert_array_equal(data.W[~data.dead], problem.W[~data.dead])
    # The intercept takes over what the constant did.
    W = np.where(solved.dead[:, None], 0.0, layer.W)
    assert_close(X.astype(np.float64) @ W + solved.intercept(W), Z)


@pytest.mark.parametrize("constant", [0.1, -1e30, 1 / 3, 1e-30])
@pytest.mark.parametrize("n_samples", [1, 2, 3, 7, 1000])
def test_a_constant_is_dead_whatever_its_mean_is_rounded_to(monkeypatch, constant, n_samples):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 10)
    X = np.column_stack([np.full(n_samples, constant), np.arange(n_samples)])
    problem = Problem(X, np.zeros((n_samples, 1)), [[1.0], [1.0]], activation="identity")
    assert gram(problem, solve_intercept=True).dead.tolist() == [True, n_samples == 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_but_for_rounding_is_dead(layer, dtype):
    X = layer.X.astype(dtype)
    X[:, 3] = 0.7 * (1 + np.finfo(dtype).eps * np.random.default_rng(0).integers(-2, 3, 30))
    assert np.ptp(X[:, 3]) > 0
    data = gram(problem_of(layer, X=X), solve_intercept=True)
    assert np.flatnonzero(data.dead).tolist() == [3]


def test_units_do_not_kill_an_input(layer):
    X = layer.X * np.logspace(-59, 59, 8)
    problem = problem_of(layer, X=X, W=layer.W / np.logspace(-59, 59, 8)[:, None])
    assert not gram(problem, solve_intercept=True).dead.any()


def test_nothing_alive(layer):
    data = gram(problem_of(layer, X=np.ones((30, 8))), solve_intercept=True).damped(0.1)
    assert data.dead.all() and not data.W.any()
    np.testing.assert_array_equal(data.stationary(), np.zeros((8, 4)))
    np.testing.assert_array_equal(data.scaled()[0].H, data.H)


# What is computed from the data ------------------------------------------------------------------


@pytest.mark.parametrize("solve_intercept", [True, False])
def test_losses_and_intercept(layer, solve_intercept):
    problem = problem_of(layer, activation="identity", Y=layer.Y + 0.3)
    data = gram(problem, solve_intercept=solve_intercept)
    W = layer.W * (np.abs(layer.W) > 0.5)
    b = data.intercept(W)
    residual = problem.Y - layer.X @ W - b
    assert_close(data.losses(W), np.sum(residual**2, axis=0))
    if solve_intercept:
        assert_close(residual.sum(axis=0), np.zeros(4))
    else:
        np.testing.assert_array_equal(b, layer.b)


@pytest.mark.parametrize("solve_intercept", [True, False])
def test_damping_is_samples_that_ask_for_the_trained_weights(layer, solve_intercept):
    problem = problem_of(layer, Y=layer.Y + 0.3)
    plain = gram(problem, solve_intercept=solve_intercept)
    data = plain.damped(0.2)
    X, T = centred(problem, solve_intercept)
    delta = 0.2 * np.mean(np.sum(X**2, axis=0))
    X = np.vstack([X, np.sqrt(delta) * np.eye(8)])
    T = np.vstack([T, np.sqrt(delta) * layer.W])
    assert_close(data.H, X.T @ X)
    assert_close(data.G, X.T @ T)
    assert_close(data.losses(0.5 * layer.W), np.sum((T - 0.5 * X @ layer.W) ** 2, axis=0))
    assert plain.damped(0.0) is plain


def test_damping_counts_live_inputs_alone(layer):
    X = layer.X.copy()
    X[:, 3] = 0.0
    alive = np.arange(8) != 3
    whole = gram(problem_of(layer, X=X), solve_intercept=True).damped(0.1)
    rest = gram(
        problem_of(layer, X=X[:, alive], W=layer.W[alive]), solve_intercept=True
    ).damped(0.1)  # fmt: skip
    assert_close(whole.H[np.ix_(alive, alive)], rest.H)


def test_scaled_data_describe_the_same_layer(layer):
    data = gram(problem_of(layer, Y=layer.Y + 0.3), solve_intercept=True)
    unit, norms = data.scaled()
    np.testing.assert_allclose(np.diag(unit.H), 1.0, rtol=TOLERANCE["norm"])
    W = layer.W * (np.abs(layer.W) > 0.5)
    assert_close(unit.losses(W * norms[:, None]), data.losses(W))
    assert_close(unit.intercept(W * norms[:, None]), data.intercept(W))
    assert_close(unit.stationary() / norms[:, None], data.stationary())


@pytest.mark.parametrize("solve_intercept", [True, False])
def test_trained_weights_are_stationary_on_their_own_data(layer, solve_intercept):
    problem = problem_of(layer, Y=layer.Y.astype(np.float32))
    data = gram(problem, solve_intercept=solve_intercept)
    np.testing.assert_array_equal(data.stationary(), layer.W)
    np.testing.assert_array_equal(data.damped(0.1).stationary(), layer.W)


@pytest.mark.parametrize("solve_intercept", [True, False])
def test_stationary_weights_are_those_of_least_squares(layer, solve_intercept):
    problem = problem_of(layer, activation="identity", Y=layer.Y)
    X, T = centred(problem, solve_intercept)
    expected = np.linalg.lstsq(X, T, rcond=None)[0]
    assert_close(gram(problem, solve_intercept=solve_intercept).stationary(), expected)


@pytest.mark.parametrize(
    "spoil",
    [lambda X: np.column_stack([X[:, :7], X[:, :7].sum(axis=1)]), lambda X: X[:6]],
    ids=["a sum of the others", "fewer samples than inputs"],
)
def test_a_singular_gram_matrix_is_named_with_its_remedy(layer, spoil):
    X = spoil(layer.X)
    problem = problem_of(layer, X=X, Y=layer.Y[: len(X)])
    data = gram(problem, solve_intercept=True)
    with pytest.raises(ProblemError, match="damping=0.*set damping above 0"):
        cholesky(data.H)
    factor = cholesky(data.damped(0.01).H)
    assert_close(factor @ factor.T, data.damped(0.01).H)


def test_units_do_not_make_a_gram_matrix_singular(layer):
    units = np.logspace(-20, 20, 8)
    data = gram(problem_of(layer, X=layer.X * units), solve_intercept=False)
    factor = cholesky(data.H)
    assert_close(factor @ factor.T / np.outer(units, units), layer.X.T @ layer.X)


# Promises ----------------------------------------------------------------------------------------


def test_inputs_are_neither_changed_nor_aliased(layer):
    given = {name: getattr(layer, name) for name in ("X", "Y", "W", "b")}
    copies = {name: array.copy() for name, array in given.items()}
    for solve_intercept in (True, False):
        data = gram(problem_of(layer), solve_intercept=solve_intercept)
        results = [getattr(data, name) for name in ARRAYS] + [data.intercept(data.W)]
        for name, array in given.items():
            np.testing.assert_array_equal(array, copies[name])
            assert not any(np.shares_memory(array, result) for result in results)


def test_memory_does_not_grow_with_the_samples(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 2_000)
    rng = np.random.default_rng(0)
    peaks = []
    for n_samples in (5_000, 40_000):
        X = rng.standard_normal((n_samples, 20))
        problem = Problem(X, np.maximum(X[:, :10], 0.0), np.eye(20)[:, :10])
        tracemalloc.start()
        gram(problem, solve_intercept=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A dozen arrays of a block, and the result.
    assert max(peaks) < 8 * (12 * 2_000 + 20 * 20 + 3 * 20 * 10)


def test_without_trained_weights_there_is_nothing_to_prune(layer):
    with pytest.raises(ProblemError, match="W must be given.*None"):
        gram(problem_of(layer, W=None, b=None), solve_intercept=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_too_large_for_squares_are_named(layer):
    with pytest.raises(ProblemError, match="the largest entry of X must be 0 or lie between"):
        gram(problem_of(layer, X=layer.X * 1e200), solve_intercept=False)

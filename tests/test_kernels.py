"""Every compiled loop against its plain numpy definition, the projections against solvers."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from nettrim_solver.solvers import kernels, polish_kernels
from nettrim_solver.solvers.admm.block import joint_multiplier

from .tolerances import TOLERANCE

DTYPES = [np.float32, np.float64]


@st.composite
def sample_blocks(draw):
    """State, products, shifts and a box with points, half-lines, intervals and free rows."""
    seed = draw(st.integers(0, 2**20))
    m, P = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(seed)
    S, Z = rng.standard_normal((2, m, P)).astype(dtype)
    shift = rng.standard_normal(m).astype(dtype)
    lower, upper = np.sort(rng.standard_normal((2, m, P)), axis=0).astype(dtype)
    kind = rng.integers(5, size=(m, P))
    upper = np.where(kind == 0, lower, upper)
    lower = np.where((kind == 1) | (kind == 3), -np.inf, lower).astype(dtype)
    upper = np.where((kind == 2) | (kind == 3), np.inf, upper).astype(dtype)
    return S, Z, shift, lower, upper, draw(st.booleans()), rng


def close(found, expected, dtype, scale=1.0):
    accuracy = TOLERANCE["kernel_single" if dtype == np.float32 else "kernel_double"]
    np.testing.assert_allclose(found, expected, rtol=accuracy, atol=accuracy * scale)


def distances(S, Z, shift, lower, upper, strict):
    """q, e = q - clip(q), and which rows are in the ball, in float64."""
    z = Z.astype(np.float64) + shift[:, None]
    q = 2 * z - S
    ball = (lower == upper) if strict else np.ones(S.shape, dtype=bool)
    return z, q, q - np.clip(q, lower, upper), ball


def projected(q, e, ball, epsilon):
    """Projection on the radius: hard rows clipped, ball rows scaled towards the box."""
    norm = np.sqrt(np.sum(np.where(ball, e, 0.0) ** 2, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        shrink = np.where(norm > epsilon, 1 - epsilon / norm, 0.0)
    return q - np.where(ball, shrink[:, None], 1.0) * e


# Definitions -----------------------------------------------------------------------------------


@given(sample_blocks(), st.floats(0.0, 3.0), st.floats(1.0, 1.9))
def test_advance_projects_on_the_ball(block, radius, relaxation):
    S, Z, shift, lower, upper, strict, rng = block
    dtype = S.dtype.type
    epsilon = (radius * rng.random(len(S))).astype(dtype)
    z, q, e, ball = distances(S, Z, shift, lower, upper, strict)
    expected = S + relaxation * (projected(q, e, ball, epsilon) - z)
    state, sums = S.copy(), np.empty(len(S), dtype)
    kernels.advance(
        state, Z, shift, lower, upper, epsilon, np.zeros(len(S), dtype), False, strict,
        dtype(relaxation), sums,
    )  # fmt: skip
    close(state, expected, dtype, 10.0)
    close(sums, expected.sum(axis=1), dtype, 10.0 * S.shape[1])


@given(sample_blocks(), st.floats(1.0, 1.9))
def test_advance_with_a_given_shrink(block, relaxation):
    S, Z, shift, lower, upper, strict, rng = block
    dtype = S.dtype.type
    shrink = rng.random(len(S)).astype(dtype)
    z, q, e, ball = distances(S, Z, shift, lower, upper, strict)
    expected = S + relaxation * (q - np.where(ball, shrink[:, None], 1.0) * e - z)
    state, sums = S.copy(), np.empty(len(S), dtype)
    unused = np.full(len(S), np.nan, dtype)
    kernels.advance(
        state, Z, shift, lower, upper, unused, shrink, True, strict, dtype(relaxation), sums
    )
    close(state, expected, dtype, 10.0)
    close(sums, expected.sum(axis=1), dtype, 10.0 * S.shape[1])


@given(sample_blocks())
def test_ball_norms(block):
    S, Z, shift, lower, upper, strict, _ = block
    _, _, e, ball = distances(S, Z, shift, lower, upper, strict)
    norms = np.empty(len(S))
    kernels.ball_norms(S, Z, shift, lower, upper, strict, norms)
    close(norms, np.linalg.norm(np.where(ball, e, 0.0), axis=1), S.dtype, 10.0)


@given(sample_blocks())
def test_measure(block):
    S, Z, shift, lower, upper, strict, rng = block
    shrink = rng.random(len(S)).astype(S.dtype)
    z, q, e, ball = distances(S, Z, shift, lower, upper, strict)
    force = np.where(ball, shrink[:, None], 1.0) * e
    dual, squares = np.empty_like(S), np.empty((len(S), 3))
    kernels.measure(S, Z, shift, lower, upper, shrink, strict, dual, squares)
    close(dual, force, S.dtype, 10.0)
    expected = [np.sum(A**2, axis=1) for A in (q - force - z, z, force)]
    close(squares, np.column_stack(expected), S.dtype, 100.0 * S.shape[1])
    assert np.all(dual[upper == np.inf] <= 0) and np.all(dual[lower == -np.inf] >= 0)


@given(sample_blocks())
def test_rescale_keeps_the_dual_point(block):
    S, Z, shift, lower, upper, strict, rng = block
    factors = np.where(rng.random(len(S)) < 0.3, 1.0, rng.uniform(0.2, 5, len(S))).astype(S.dtype)
    z = Z.astype(np.float64) + shift[:, None]
    expected = z + (S - z) / factors[:, None]
    state, sums = S.copy(), S.sum(axis=1)
    kernels.rescale(state, Z, shift, factors, sums)
    close(state, expected, S.dtype, 10.0)
    close(sums, expected.sum(axis=1), S.dtype, 10.0 * S.shape[1])
    assert np.array_equal(state[factors == 1], S[factors == 1])


@given(st.integers(0, 2**20), st.sampled_from(DTYPES), st.floats(1.0, 1.9))
def test_shrink_weights(seed, dtype, relaxation):
    rng = np.random.default_rng(seed)
    state, W = rng.standard_normal((2, 3, 12)).astype(dtype)
    threshold = (rng.random((3, 12)) * (rng.random((3, 12)) < 0.8)).astype(dtype)
    q = 2 * W.astype(np.float64) - state
    soft = np.sign(q) * np.maximum(np.abs(q) - threshold, 0.0)
    moved, answer = state.copy(), np.empty_like(W)
    kernels.shrink_weights(moved, W, threshold, dtype(relaxation), answer)
    close(answer, soft, dtype, 10.0)
    close(moved, state + relaxation * (soft - W), dtype, 10.0)
    sure = np.abs(np.abs(q) - threshold) > 1e-5
    assert np.array_equal((answer == 0)[sure], (soft == 0)[sure])


@given(sample_blocks(), st.booleans())
def test_conditions(block, centre):
    _, Z, shift, lower, upper, strict, rng = block
    Z, lower, upper = (A.astype(np.float64) for A in (Z, lower, upper))
    hard = (lower < upper) & strict
    nu = np.where(hard, rng.standard_normal(Z.shape), 0.0)
    nu = np.where(nu > 0, np.where(upper < np.inf, nu, 0.0), np.where(lower > -np.inf, nu, 0.0))
    for j in range(len(Z)):
        z, y, sums = Z[j].copy(), np.empty(Z.shape[1]), np.empty(6)
        flags = hard[j] if strict else np.zeros(0, dtype=bool)
        polish_kernels.conditions(z, lower[j], upper[j], flags, nu[j], centre, y, sums)
        close(z, Z[j] + sums[5], np.float64, 10.0)
        e = z - np.clip(z, lower[j], upper[j])
        expected = np.where(hard[j], nu[j], e)
        close(y, expected, np.float64, 10.0)
        ends = np.where(expected > 0, upper[j], lower[j])
        support = sum(v * end for v, end in zip(expected, ends, strict=True) if v != 0)
        wanted = [
            np.sum(e[~hard[j]] ** 2), np.sum(e[hard[j]] ** 2), expected.sum(), support,
            np.sum(expected**2),
        ]  # fmt: skip
        close(sums[:5], np.array(wanted), np.float64, 100.0 * len(z))
        if not centre:
            assert sums[5] == 0.0
        elif np.any(y[~hard[j]] != 0):
            # Of a sum without a zero (one sign only) no more than progress can be asked.
            before = np.where(hard[j], nu[j], Z[j] - np.clip(Z[j], lower[j], upper[j])).sum()
            assert abs(sums[2]) <= abs(before) + TOLERANCE["projection"]


def test_conditions_balance_an_intercept():
    rng = np.random.default_rng(2)
    z, point = rng.standard_normal((2, 50))
    upper = np.where(rng.random(50) < 0.5, point, np.inf)
    y, sums = np.empty(50), np.empty(6)
    polish_kernels.conditions(z, point, upper, np.zeros(0, dtype=bool), np.zeros(0), True, y, sums)
    assert abs(y.sum()) <= TOLERANCE["projection"]


@given(
    st.integers(0, 2**20), st.sampled_from(DTYPES), st.integers(1, 5), st.integers(1, 9),
    st.sampled_from([1, 3, 4, 5, 63, 64, 65, 66, 130]), st.floats(0.0, 1.0),
)  # fmt: skip
def test_products_of_few_outputs(seed, dtype, m, N, P, share):
    rng = np.random.default_rng(seed)
    X, V = rng.standard_normal((P, N)).astype(dtype), rng.standard_normal((m, N)).astype(dtype)
    S = (rng.standard_normal((m, P)) * (rng.random((m, P)) < share)).astype(dtype)
    Z, product = np.full((m, P), np.nan, dtype), np.ones((m, N), dtype)
    kernels.forward_few(X, V, Z)
    close(Z, V.astype(np.float64) @ X.T.astype(np.float64), dtype, N)
    room = kernels.TILE + 4
    kernels.adjoint_few(X, S, product, np.empty(room, np.uint64), np.full(room, np.nan, dtype))
    close(product, 1.0 + S.astype(np.float64) @ X.astype(np.float64), dtype, 1.0 + P)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [0, 1])
def test_gather_and_submatrix(dtype, constant):
    rng = np.random.default_rng(0)
    X, mean, scale = rng.standard_normal((20, 9)), rng.standard_normal(9), rng.random(9)
    rows, columns = np.array([3, 0, 17]), np.array([8, 1, 2, 5])
    out = np.empty((3, 4 + constant), dtype=dtype)
    polish_kernels.gather(X, rows, columns, mean, scale, constant, out)
    close(out[:, constant:], ((X - mean) * scale)[np.ix_(rows, columns)], dtype)
    assert np.all(out[:, :constant] == 1)

    gram, chosen = X.T @ X, np.array([1, 4, 6])
    H = np.zeros((3 + constant, 3 + constant), order="F")
    polish_kernels.submatrix(np.tril(gram), chosen, H, constant)
    assert np.array_equal(H[constant:, constant:], np.tril(gram[np.ix_(chosen, chosen)]))
    assert not H[:constant].any()


# What the kernels are for ----------------------------------------------------------------------


@given(sample_blocks(), st.floats(0.0, 2.0))
def test_the_projection_is_the_nearest_point_within_the_radius(block, epsilon):
    S, Z, shift, lower, upper, strict, rng = block
    S, Z, shift = (np.asarray(A, dtype=np.float64) for A in (S, Z, shift))
    z, q, _, ball = distances(S, Z, shift, lower, upper, strict)
    state, sums = S.copy(), np.empty(len(S))
    lower, upper = lower.astype(np.float64), upper.astype(np.float64)
    kernels.advance(
        state, Z, shift, lower, upper, np.full(len(S), epsilon), np.zeros(len(S)), False, strict,
        1.0, sums,
    )  # fmt: skip
    nearest = state - S + z
    excess = np.where(ball, nearest - np.clip(nearest, lower, upper), 0.0)
    assert np.all(np.linalg.norm(excess, axis=1) <= epsilon + TOLERANCE["projection"])
    hard = np.where(ball, 0.0, nearest - np.clip(nearest, lower, upper))
    assert np.abs(hard).max() <= TOLERANCE["projection"]
    # The nearest point of a convex set sees every other one at an obtuse angle.
    for size in (1e-2, 1.0, 10.0):
        inside = np.clip(nearest + size * rng.standard_normal(S.shape), lower, upper)
        offset = np.where(ball, rng.standard_normal(S.shape), 0.0)
        length = np.linalg.norm(offset, axis=1, keepdims=True)
        other = inside + epsilon * np.divide(offset, length, out=offset, where=length > 0)
        angles = np.sum((q - nearest) * (other - nearest), axis=1)
        assert np.all(angles <= TOLERANCE["projection"] * size * S.shape[1])


@given(
    st.lists(
        st.tuples(st.floats(-5, 5), st.floats(0, 3), st.sampled_from("pulif")),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_best_constants_minimise_the_distance(rows):
    lower = np.array([[-np.inf if kind in "uf" else a for a, _, kind in rows]])
    upper = np.array(
        [
            [
                np.inf if kind in "lf" else a + (width if kind == "i" else 0.0)
                for a, width, kind in rows
            ]
        ]
    )
    upper = np.maximum(lower, upper)

    def square(b):
        return float(np.sum((b - np.clip(b, lower, upper)) ** 2))

    constants, squares = np.empty(1), np.empty(1)
    kernels.best_constants(lower, upper, constants, squares)
    assert squares[0] == pytest.approx(square(constants[0]), rel=TOLERANCE["norm"], abs=1e-300)
    found = minimize_scalar(square, bounds=(-10, 10), method="bounded", options={"xatol": 1e-10})
    assert squares[0] <= found.fun + TOLERANCE["best_constant"]


@pytest.mark.parametrize("size", [1e-150, 1e-8, 1.0, 1e8, 1e100])
def test_best_constants_of_any_size(size):
    rng = np.random.default_rng(1)
    point = size * (3.0 + rng.standard_normal((2, 50)))
    constants, squares = np.empty(2), np.empty(2)
    kernels.best_constants(point, point.copy(), constants, squares)
    np.testing.assert_allclose(constants, point.mean(axis=1), rtol=TOLERANCE["norm"])
    np.testing.assert_allclose(
        squares / size**2, np.sum(((point - constants[:, None]) / size) ** 2, axis=1),
        rtol=TOLERANCE["reordered"],
    )  # fmt: skip


# Bordered systems --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])
def test_triangles_are_mirrored_and_taken_over(n, dtype):
    rng = np.random.default_rng(n)
    matrix = rng.standard_normal((n, n)).astype(dtype)
    expected = np.triu(matrix) + np.triu(matrix, 1).T
    polish_kernels.mirror(matrix)
    np.testing.assert_array_equal(matrix, expected)
    chosen = np.flatnonzero(rng.random(n) < 0.5)
    places = np.sort(rng.choice(n + 3, len(chosen), replace=False))
    factor, new = np.tril(expected, -1), np.zeros((n + 3, n + 3), dtype)
    polish_kernels.inherit(factor, np.diag(expected).astype(np.float64), chosen, places, new)
    wanted = np.zeros_like(new)
    wanted[np.ix_(places, places)] = expected[np.ix_(chosen, chosen)]
    np.testing.assert_array_equal(new, np.triu(wanted))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 17])
def test_triangular_solutions_and_borders(n, dtype):
    rng = np.random.default_rng(n)
    factor = np.tril(rng.standard_normal((n, n))) + 4.0 * np.eye(n)
    factor = np.asfortranarray(factor.astype(dtype))
    upper, border, half = factor.T, rng.standard_normal((6, n)), rng.standard_normal((2, n))
    border, half = border.astype(dtype), half.astype(dtype)
    right = half.copy()
    polish_kernels.forward_rows(upper, right)
    close(right @ factor.T.astype(np.float64), half, dtype, n)
    schur, keys = rng.standard_normal((8, 8)), np.array([5, 0, 3])
    diagonal, values = rng.standard_normal(2), rng.standard_normal((3, 2))
    matrix, side = np.empty((3, 3)), np.empty((3, 2))
    polish_kernels.border_system(schur, keys, diagonal, border, half, values, matrix, side)
    close(matrix, schur[np.ix_(keys, keys)] + np.diag([*diagonal, 0.0]), np.float64)
    close(side, values - border[keys].astype(np.float64) @ half.T, dtype, n)
    x, z = np.full((2, n + 1), 0.5), rng.standard_normal((3, 2))
    polish_kernels.border_back(upper, keys, border, z, half.copy(), x)
    close(x[:, :n] @ factor.astype(np.float64), half - z.T @ border[keys], dtype, n)
    assert np.all(x[:, n] == 0.5)


@pytest.mark.parametrize("enter", [1.0, np.inf])
def test_columns_that_work_and_columns_that_may_enter(enter):
    rng = np.random.default_rng(8)
    V = np.where(rng.random(40) < 0.5, rng.standard_normal(40), 0.0)
    gradient, live = rng.standard_normal(40), rng.random(40) < 0.8
    penalty = np.where(rng.random(40) < 0.8, rng.random(40) + 0.5, 0.0)
    inside, entering, excess = np.empty(40, bool), np.empty(40, np.int64), np.empty(40)
    n_inside, n = polish_kernels.support(
        V, gradient, penalty, live, 0.7, enter, inside, entering, excess
    )
    expected = (V != 0) | ((penalty == 0) & live)
    np.testing.assert_array_equal(inside, expected)
    assert n_inside == expected.sum()
    over = np.abs(gradient) - enter * 0.7 * np.where(penalty > 0, penalty, 1.0)
    np.testing.assert_array_equal(entering[:n], np.flatnonzero((over > 0) & live & ~expected))
    np.testing.assert_allclose(excess[:n], over[entering[:n]], rtol=TOLERANCE["reordered"])
    assert n == 0 if enter == np.inf else 0 < n < 40


@pytest.mark.parametrize("strict", [False, True])
def test_rows_that_work(strict):
    """Ball rows: matched, or with a y. Hard rows: with a multiplier, or outside the box."""
    rng = np.random.default_rng(9)
    z, lower = rng.standard_normal(60), -rng.random(60)
    upper = np.where(rng.random(60) < 0.4, lower, rng.random(60))
    hard = (upper > lower) & (rng.random(60) < 0.7) if strict else np.zeros(0, dtype=bool)
    y = np.where(rng.random(60) < 0.5, rng.standard_normal(60), 0.0)
    rows, stiff, sides = np.empty(60, bool), np.empty(60, np.int64), np.empty(60)
    n = polish_kernels.working_rows(z, y, lower, upper, hard, rows, stiff, sides)
    mask = hard if strict else np.zeros(60, dtype=bool)
    np.testing.assert_array_equal(rows, ~mask & ((y != 0) | (lower == upper)))
    side = np.where(y != 0, y, z - np.clip(z, lower, upper))
    np.testing.assert_array_equal(stiff[:n], np.flatnonzero(mask & (side != 0)))
    np.testing.assert_array_equal(sides[:n], side[stiff[:n]])
    assert (n > 0) == strict


def test_the_distance_along_a_step_is_a_quadratic():
    """Its coefficients follow from the system that the step solves."""
    rng = np.random.default_rng(5)
    A, B = rng.standard_normal((30, 6)), rng.standard_normal((2, 6))
    E, cost, ridge = rng.standard_normal(30), rng.standard_normal(6), rng.random(6)
    y, weight, lambda_, held = rng.standard_normal(2), 7.0, 0.3, np.array([4])
    right = A.T @ E + B.T @ y  # y counts in the conditions, not in the distance
    goal, value = rng.standard_normal((2, 2)), np.array([[0.7, 0.0]])
    unit = np.eye(6)[held]
    border = np.block([[-np.eye(2) / weight, np.zeros((2, 1))], [np.zeros((1, 3))]])
    K = np.block(
        [[A.T @ A + np.diag(ridge), np.vstack([B, unit]).T], [np.vstack([B, unit]), border]]
    )
    sides = np.vstack([np.column_stack([right + lambda_ * cost, cost]), goal, value])
    solved = np.linalg.solve(K, sides)
    x, push, pull = np.ascontiguousarray(solved[:6].T), -solved[6:8], solved[8:, 0].copy()
    found = polish_kernels.radius_change(
        x, right, lambda_, cost, ridge, held, pull, B @ x.T, y, push, float(E @ E)
    )
    lines = np.column_stack([A @ x[1], E - A @ x[0]])
    expected = [
        lines[:, 0] @ lines[:, 0],
        -2 * lines[:, 0] @ lines[:, 1],
        lines[:, 1] @ lines[:, 1],
    ]
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE["reordered"])


def test_flips_and_wrong_forces_are_counted():
    x = np.array([[0.0, 2.0, 0.5, 0.0, 3.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    start, cost = np.array([1.0, 1.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, -1.0, 0.0])
    dropped, delta, force = np.zeros(5, dtype=bool), np.empty(5), np.empty(2)
    y, push, signs = np.array([1.0, -1.0]), np.array([[-2.0, 1.0], [0.0, 0.0]]), np.array([1.0, -1])
    found = polish_kernels.flip(x, 0.5, start, cost, dropped, y, push, signs, delta, force)
    assert found == (1, 1)
    np.testing.assert_array_equal(delta, [0.5, 2, 0.5, 0, 3])
    np.testing.assert_array_equal(dropped, [False, True, False, False, False])
    np.testing.assert_array_equal(force, [-0.5, -1.0])


def test_the_dual_ratio():
    V, gradient = np.array([1.0, -2.0, 0.0]), np.array([3.0, -4.0, 1.0])
    penalty = np.array([1.0, 2.0, 0.0])
    assert polish_kernels.dual_ratio(V, gradient, penalty, 0.5, 2.0) == (5.0, 6.0)
    assert polish_kernels.dual_ratio(V, gradient, penalty, 0.5, 0.5) == (5.0, np.inf)


@given(sample_blocks(), st.integers(0, 2**20))
def test_no_row_changes_its_part_within_a_piece(block, seed):
    S, _, _, lower, upper, strict, _ = block
    rng = np.random.default_rng(seed)
    z, slope = S[0].astype(np.float64), rng.standard_normal(S.shape[1])
    lower, upper = lower[0].astype(np.float64), upper[0].astype(np.float64)
    hard = (lower < upper) & strict
    y = z - np.clip(z, lower, upper)
    change = np.where(hard, rng.standard_normal(len(z)), np.nan)
    if strict:  # hard rows that work are at an end of the box, with any multiplier
        works = hard & (y != 0)
        z[works], y[works] = np.clip(z, lower, upper)[works], rng.standard_normal(works.sum())
    ends = np.empty(2)
    polish_kernels.piece(
        z, slope, lower, upper, hard if strict else np.zeros(0, dtype=bool), y, change, ends
    )
    assert ends[0] <= 0.0 <= ends[1]
    ball = ~hard
    expected = np.where((y != 0) | (lower == upper), slope, 0.0)
    np.testing.assert_array_equal(change[ball], expected[ball])

    def parts(step):
        at = z + step * slope
        side = np.sign(at - np.clip(at, lower, upper))
        works = hard & (y != 0)
        side[works] = np.sign((y + step * change)[works])
        side[(lower == upper) & ball] = 0.0
        return side

    for end in ends:
        inside = 0.999 * np.clip(end, -10.0, 10.0)
        np.testing.assert_array_equal(parts(inside), parts(0.0))
        if abs(end) < 10.0 and end != 0.0:
            assert np.any(parts(1.001 * end) != parts(0.0))


@given(
    st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(1e-4, 1e4)), min_size=1, max_size=8),
    st.floats(1e-3, 0.999),
)
def test_the_joint_multiplier_solves_its_equation(rows, fraction):
    norms, rho = np.array(rows).T
    if np.linalg.norm(norms) < 1e-6:
        return
    epsilon = fraction * np.linalg.norm(norms)
    mu = joint_multiplier(norms, rho, epsilon)
    assert mu > 0
    left = np.linalg.norm(rho * norms / (rho + mu))
    assert left == pytest.approx(epsilon, rel=TOLERANCE["joint_multiplier"])


def test_the_joint_multiplier_at_its_ends():
    norms, rho = np.array([3.0, 4.0]), np.array([1.0, 2.0])
    assert joint_multiplier(norms, rho, 5.0) == 0.0
    assert joint_multiplier(norms, rho, 7.0) == 0.0
    assert joint_multiplier(norms, rho, 0.0) == np.inf
    assert joint_multiplier(np.array([4.0]), np.array([2.0]), 1.0) == pytest.approx(6.0)


@pytest.mark.parametrize("size", [1e-120, 1e-8, 1e8, 1e120])
def test_the_joint_multiplier_has_the_units_of_rho(size):
    # A layer whose targets grow by `size` has distances as much larger, and rho smaller by squares.
    norms, rho = np.array([3.0, 4.0, 1.0]), np.array([1.0, 2.0, 50.0])
    mu = joint_multiplier(norms, rho, 2.0)
    scaled = joint_multiplier(norms * size, rho / size / size, 2.0 * size)
    assert scaled * size * size == pytest.approx(mu, rel=TOLERANCE["joint_multiplier"])


CACHED = """
import warnings
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from nettrim_solver.solvers import kernels
    beta, squares = np.zeros(1), np.zeros(1)
    for _ in range(2):
        kernels.best_constants(np.ones((1, 3)), np.ones((1, 3)), beta, squares)
    kernels.ball_norms(*[np.ones((1, 3))] * 2, np.zeros(1), *[np.ones((1, 3))] * 2, False, squares)
print(beta[0], len([w for w in caught if "NUMBA_CACHE_DIR" in str(w.message)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated index", "truncated code", "no room"])
def test_a_broken_cache_of_compiled_kernels_costs_a_warning(tmp_path, damage):
    def run(folder):
        done = subprocess.run(
            [sys.executable, "-c", CACHED], capture_output=True, text=True, timeout=300,
            env=os.environ | {"NUMBA_CACHE_DIR": str(folder)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert run(tmp_path) == ["1.0", "0"]
    if damage == "no room":
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        names = {path.parent.name for path in tmp_path.rglob("*.nbi")}
        for name in names:  # a file where the folder should be
            (tmp_path / "full" / name).touch()
        assert run(tmp_path / "full")[0] == "1.0"
        return
    for path in tmp_path.rglob("*.nbi" if damage == "truncated index" else "*.nbc"):
        path.write_bytes(path.read_bytes()[:40])
    assert run(tmp_path) == ["1.0", "1"]
    assert run(tmp_path) == ["1.0", "0"]

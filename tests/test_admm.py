"""Parts of the default solver: factorisation, working sets, blocks, settings and bookkeeping."""

import ctypes
import dataclasses
import tracemalloc
import types
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp

from nettrim_solver import Factorisation, Problem, Status, instances, solve
from nettrim_solver.exceptions import ProblemError, SettingsError
from nettrim_solver.problem import RADII
from nettrim_solver.solvers import Context, admm, polish_kernels
from nettrim_solver.solvers.admm import factorisation, lapack, polish, separable, working_set
from nettrim_solver.solvers.admm.block import Block
from nettrim_solver.solvers.admm.model import Model
from nettrim_solver.solvers.admm.run import ARRAYS
from nettrim_solver.solvers.admm.working_set import WorkingSet, gather

from .tolerances import TOLERANCE

SHAPES = [(40, 12), (12, 40), (20, 20)]


def design(n_samples, n_inputs, storage="dense", dtype=np.float64, seed=0):
    """Inputs with a dead and (for an intercept) a constant column."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_inputs)) + 0.5
    X *= 10.0 ** rng.uniform(-1, 1, n_inputs)
    X[np.abs(X) < 0.3] = 0.0
    X[:, 1] = 0.0
    X[:, 2] = 0.7
    X = X.astype(dtype)
    return sp.csr_array(X) if storage == "sparse" else X


def prepared(X, intercept):
    """The factorisation of X, and the scaled and centred X written out."""
    Y = np.ones((X.shape[0], 1))
    f = Factorisation(Problem(X, Y, intercept=intercept, epsilon=1.0))
    full = np.asarray(X.toarray() if sp.issparse(X) else X, dtype=np.float64)
    centred = full - full.mean(axis=0) if intercept else full
    norm = np.linalg.norm(centred, axis=0)
    live = norm > 1e-9 * np.linalg.norm(full, axis=0).max()
    return f, np.where(live, centred / np.where(live, norm, 1.0), 0.0)


# The factorisation -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("storage", ["dense", "sparse"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_with_the_scaled_design(shape, intercept, storage, dtype):
    f, X = prepared(design(*shape, storage, dtype), intercept)
    close = TOLERANCE["kernel_single" if dtype == np.float32 else "factorisation"]
    rng = np.random.default_rng(1)
    V, S = rng.standard_normal((3, shape[1])), rng.standard_normal((3, shape[0]))
    V[:, ~f.live] = 0.0
    Z, shift = f.forward(V)
    np.testing.assert_allclose(Z + shift[:, None], V @ X.T, atol=close)
    np.testing.assert_allclose(f.adjoint(S), S @ X, atol=close)
    assert np.array_equal(f.live, X.any(axis=0))


def projected(f, state, S):
    """V, Z, shift and beta of the projection, from arrays that are overwritten."""
    V, Z = np.full_like(state, np.nan), np.full_like(S, np.nan)
    return V, Z, *f.project(state, S, S.sum(axis=1, dtype=np.float64), V, Z)


@pytest.mark.parametrize("storage", ["dense", "sparse"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_projection_solves_the_normal_equations(shape, intercept, storage):
    f, X = prepared(design(*shape, storage), intercept)
    assert f.small_side == (shape[0] < shape[1])
    rng = np.random.default_rng(2)
    state, S = rng.standard_normal((3, shape[1])), rng.standard_normal((3, shape[0]))
    V, Z, shift, beta = projected(f, state, S)
    # min kappa ||V - state||^2 + ||X V + beta - S||^2, with beta free or absent.
    A = np.column_stack([X, np.ones(shape[0])]) if intercept else X
    regular = A.T @ A
    regular[np.arange(shape[1]), np.arange(shape[1])] += f.kappa
    right = S @ A
    right[:, : shape[1]] += f.kappa * state
    expected = np.linalg.solve(regular, right.T).T
    close = TOLERANCE["factorisation"]
    live = f.live
    np.testing.assert_allclose(V[:, live], expected[:, : shape[1]][:, live], atol=close)
    np.testing.assert_allclose(Z + shift[:, None], expected @ A.T, atol=close)
    np.testing.assert_allclose(beta, expected[:, -1] if intercept else 0.0, atol=close)


@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision_projections(shape):
    f, _ = prepared(design(*shape), True)
    rng = np.random.default_rng(3)
    state, S = rng.standard_normal((3, shape[1])), rng.standard_normal((3, shape[0]))
    double = projected(f, state, S)
    single = projected(f, state.astype(np.float32), S.astype(np.float32))
    assert single[0].dtype == single[1].dtype == np.float32
    for found, expected in zip(single, double, strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE["single_projection"])


@pytest.mark.parametrize(
    "other",
    [
        lambda p: p.replace(X=p.X + 1.0),
        lambda p: p.replace(X=p.X.astype(np.float32)),
        lambda p: p.replace(X=sp.csr_array(p.X)),
        lambda p: p.replace(X=p.X[:, :5], W=None, weights=None),
        lambda p: p.replace(intercept=False),
    ],
)
def test_a_factorisation_of_something_else_is_refused(other):
    problem = instances.random_layer(30, 8, 2, intercept=True).problem.replace(b=None)
    with pytest.raises(ProblemError, match="factorisation must come from a problem with the same"):
        solve(other(problem), factorisation=Factorisation(problem))


def test_a_factorisation_of_equal_inputs_is_accepted():
    problem = instances.random_layer(30, 8, 2).problem
    equal = problem.replace(X=problem.X.copy())
    assert solve(equal, factorisation=Factorisation(problem)).status is Status.OPTIMAL


# Working sets ----------------------------------------------------------------------------------


def system_from_scratch(f, columns, weights):
    block = gather(f, np.arange(f.n_samples), columns, np.float64)
    return (block * weights[:, None]).T @ block


def solve_bordered(system, right, held, values, changed, diagonal):
    """Solve with appended variables in use, some held and some samples' weights changed."""
    n = len(system)
    system.hold(held)
    keys = np.concatenate([system.row_keys(changed), system.column_keys, system.held_keys[held]])
    sides = np.concatenate([np.zeros(len(changed)), right[system.n_base :], values])[:, None]
    x = np.zeros((1, n))
    z = system.solve(system.half_solution(right[None]), keys, diagonal, sides, x)
    x[0, system.n_base :] = z[len(changed) : len(changed) + n - system.n_base, 0]
    return x[0], z[:, 0]


@pytest.mark.parametrize("storage", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("share", [0.45, 0.8])  # fewer rows, or fewer others
@pytest.mark.parametrize("shape", [(60, 20), (40, 60)])
def test_a_border_equals_a_new_system(shape, share, intercept, dtype, storage):
    """Columns enter and are held, rows change their weight: as if H were built for the result."""
    X = design(*shape, storage)
    f, _ = prepared(X, intercept)
    rng = np.random.default_rng(4)
    rows = (rng.random(shape[0]) < share) * rng.choice([1.0, 1.0, 6.0], shape[0])
    # Few rows leave nothing of a column that is zero nearly everywhere.
    filled = np.flatnonzero(np.asarray((X != 0).mean(axis=0)).ravel() > 0.5)
    filled = np.setdiff1d(filled, 2)  # the constant one
    system = WorkingSet(f, filled[:5], rows, dtype)
    assert system.defined
    weights = rows.copy()
    close = TOLERANCE["single_projection" if dtype == np.float32 else "factorisation"]
    for step in range(6):
        unused = np.setdiff1d(filled, system.columns)
        system.append(rng.choice(unused, 1 + step % 2, replace=False))
        changed = np.sort(rng.choice(shape[0], 3, replace=False))
        weights[changed] = rng.choice([0.0, 1.0, 10.0], 3)
        n, different = len(system), np.flatnonzero(weights != rows)
        held = np.sort(rng.choice(n, 2, replace=False))
        values = rng.standard_normal(2)
        right = rng.standard_normal(n)
        diagonal = -1.0 / (weights - rows)[different]
        x, z = solve_bordered(system, right, held, values, different, diagonal)
        H = system_from_scratch(f, system.columns, weights) + np.diag(system.ridge)
        residual = H @ x - right
        residual[held] += z[-2:]
        size = np.abs(right).max() + np.abs(H).max() * np.abs(x).max()
        assert np.abs(residual).max() <= close * size
        np.testing.assert_allclose(x[held], values, atol=close * size)


@pytest.mark.parametrize("storage", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("shape", [(60, 20), (40, 60)])
def test_a_matrix_taken_over_equals_a_new_one(monkeypatch, shape, intercept, dtype, storage):
    """Columns come and go, and so do rows; a damping leaves all as it was."""
    f, _ = prepared(design(*shape, storage), intercept)
    rng = np.random.default_rng(5)
    rows, columns, system = (rng.random(shape[0]) < 0.6).astype(float), np.arange(2, 12), None
    close = TOLERANCE["single_projection" if dtype == np.float32 else "factorisation"]
    monkeypatch.setattr(working_set, "TAKEN_OVER", np.inf)
    taken = []
    take_over = WorkingSet._take_over
    monkeypatch.setattr(
        WorkingSet, "_take_over", lambda *given: (taken.append(1), take_over(*given))
    )
    for damping in (0.0, 0.0, 1e-2, 1e-3):
        system = WorkingSet(f, columns, rows, dtype, damping, system)
        new = WorkingSet(f, columns, rows, dtype, damping)
        assert system.defined and new.defined
        for found, expected in ((system.factor, new.factor), (system.ridge, new.ridge)):
            np.testing.assert_allclose(np.tril(found), np.tril(expected), atol=close)
        rows = np.where(rng.random(shape[0]) < 0.1, rng.choice([0.0, 1.0, 4.0], shape[0]), rows)
        columns = np.sort(rng.choice(18, 10, replace=False))
    assert len(taken) == 3


def test_ridges_are_relative_to_rows_of_weight_one():
    """A heavy row must not stiffen the steps, nor a light one soften them."""
    f, _ = prepared(design(60, 20), True)
    weights = np.ones(60)
    plain = WorkingSet(f, np.arange(8), weights.copy(), np.float64, 1e-2)
    weights[:8] = np.append(np.full(5, 1e5), np.full(3, 0.1))
    heavy = WorkingSet(f, np.arange(8), weights, np.float64, 1e-2)
    np.testing.assert_allclose(heavy.ridge, plain.ridge, rtol=TOLERANCE["factorisation"])


@pytest.mark.parametrize("released", [[], [1, 3]])
@pytest.mark.parametrize("counted", [0.0, 1.0, 50.0])
def test_a_step_with_hard_rows_solves_its_quadratic_model(counted, released):
    """Whatever hard rows count in the base, and whether they are released from there."""
    f, _ = prepared(design(60, 20), True)
    rng = np.random.default_rng(7)
    stiff, y, excess = np.arange(6, 12), rng.random(6) + 0.5, 1e-3 * rng.standard_normal(6)
    columns, weights = np.arange(3, 10), np.ones(60)
    weights[stiff] = counted
    system = WorkingSet(f, columns, weights, np.float64)
    rows = np.ones(60, dtype=bool)
    rows[stiff] = False
    right, cost = 1e-2 * rng.standard_normal(8), np.append(0.0, np.ones(7))
    start = np.full(8, 10.0)
    model = Model(system, np.ones(8, bool), rows, right, cost, start, 1e-3, 50.0)
    model.add_stiff_rows(stiff, y.copy(), excess, np.ones(6))
    if released:
        model.force = np.where(np.isin(np.arange(6), released), -1.0, 1.0)
        model._release()
        np.testing.assert_array_equal(model.force[released], 0.0)  # should no round follow
    step = model.solve(1.0, None)
    block = gather(f, np.arange(60), columns, np.float64)
    B, kept = block[stiff], np.isin(np.arange(6), released, invert=True)
    H = block[rows].T @ block[rows] + 50.0 * B[kept].T @ B[kept] + np.diag(system.ridge)
    sides = right - y[~kept] @ B[~kept] + 1e-3 * cost + 50.0 * excess[kept] @ B[kept]
    expected = np.linalg.solve(H, sides)
    close = {"rtol": TOLERANCE["factorisation"], "atol": TOLERANCE["factorisation"]}
    np.testing.assert_allclose(step.delta, expected, **close)
    np.testing.assert_allclose(step.tangent, np.linalg.solve(H, cost), **close)
    force = np.where(kept, y + 50.0 * (excess - B @ expected), 0.0)
    np.testing.assert_allclose(model.force, force, **close)


def test_entries_in_use_are_listed_and_their_solution_is_spread():
    """Appended variables that rest are left out, others are held where they drop."""
    start = np.array([1.0, 2.0, 0.0, 0.0, 3.0, 4.0])
    dropped = np.array([False, True, False, True, True, False])
    full, held_keys = np.arange(12.0).reshape(2, 6), np.array([-1, 7, -1, -1, 8, -1])
    keys, values, held = np.zeros(9, np.int64), np.zeros((9, 2)), np.zeros(6, np.int64)
    found = polish_kernels.border_entries(
        2, np.array([10, 11, 12, 13]), held_keys, start, dropped, full, 1, keys, values, held
    )
    assert found == (4, 2, 0)
    np.testing.assert_array_equal(keys[1:6], [10, 12, 13, 7, 8])
    np.testing.assert_array_equal(values[1:6], [[2, 8], [4, 10], [5, 11], [2, 0], [3, 0]])
    np.testing.assert_array_equal(held[:2], [1, 4])
    z, x = np.arange(12.0).reshape(6, 2), np.full((2, 6), 0.5)
    pull = np.zeros(2)
    assert polish_kernels.border_spread(z, 2, 1, start, dropped, x, pull)
    np.testing.assert_array_equal(x, [[0.5, 2, 2, 0, 3, 6], [0.5, 0, 3, 0, 0, 7]])
    np.testing.assert_array_equal(pull, [8, 10])
    z[3, 1] = np.nan
    assert not polish_kernels.border_spread(z, 2, 1, start, dropped, x, pull)


def test_columns_are_missing_until_they_are_appended():
    f, _ = prepared(design(60, 20), True)
    system = WorkingSet(f, np.array([4, 5, 9]), np.ones(60), np.float64)
    wanted = np.zeros(20, dtype=bool)
    wanted[[3, 5, 7]] = True
    assert list(system.missing(wanted)) == [3, 7]
    system.append(np.array([7]))
    assert list(system.missing(wanted)) == [3]


def test_dependent_columns_can_be_factorised():
    X = design(40, 12)
    X[:, 5] = X[:, 4]
    f, _ = prepared(X, True)
    for dtype in (np.float32, np.float64):
        assert WorkingSet(f, np.array([3, 4, 5]), np.ones(40), dtype).defined


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_any_number_polished_at_a_time_gives_the_same_answer(monkeypatch, formulation, radius):
    problem = instances.random_relu_layer(
        90, 24, 9, formulation=formulation, radius=radius, tolerance=0.1, intercept=True, seed=2
    ).problem
    answers = []
    for width in (1, 4, 32):
        monkeypatch.setattr("nettrim_solver.solvers.admm.run.POOL", width)
        monkeypatch.setattr("nettrim_solver.solvers.admm.run.POOL_SHARE", 1)
        answers.append(solve(problem, tol_gap=1e-9, tol_feas=1e-9))
        assert answers[-1].status is Status.OPTIMAL
    size = np.abs(answers[0].W).max()
    for other in answers[1:]:
        np.testing.assert_allclose(
            other.W, answers[0].W, atol=TOLERANCE["independent_outputs"] * size
        )


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_systems_in_flight_are_as_many_as_there_is_room_for(monkeypatch, formulation):
    problem = instances.random_relu_layer(
        90, 24, 40, formulation=formulation, radius="per_output", tolerance=0.1, seed=2
    ).problem
    monkeypatch.setattr("nettrim_solver.solvers.admm.run.POOL_SHARE", 1)
    evaluate, widths = polish.evaluate, []
    monkeypatch.setattr(
        polish,
        "evaluate",
        lambda f, outputs: (widths.append(len(outputs)), evaluate(f, outputs))[1],
    )
    for room, most in ((0, polish.LEAST), (2**40, 32)):
        widths.clear()
        monkeypatch.setattr(polish, "SYSTEM_BYTES", room)
        assert solve(problem, n_threads=1).status is Status.OPTIMAL
        assert polish.LEAST <= max(widths) <= most
    assert max(widths) > polish.LEAST


# Blocks ----------------------------------------------------------------------------------------


@pytest.fixture(params=["direct", "wrappers"])
def routines(request, monkeypatch):
    """The routines by their addresses, and as where SciPy does not give these."""
    if request.param == "wrappers":
        monkeypatch.setattr(lapack, "_routine", lambda name, dtype: None)


@pytest.mark.parametrize("layout", ["fitting", "strided"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_routines_without_lock_do_what_numpy_does(routines, dtype, layout):
    rng = np.random.default_rng(8)
    close = TOLERANCE["kernel_single" if dtype == np.float32 else "factorisation"]

    def laid(array, order):
        """The array in the order that the routines want, or spread over a larger one."""
        array = np.array(array, dtype=dtype, order=order)
        if layout == "fitting":
            return array
        wide = np.full((2 * len(array), 3 * array.shape[1]), np.nan, dtype=dtype)
        wide[::2, ::3] = array
        return wide[::2, ::3]

    for n in (1, 9, 40):
        block = laid(rng.standard_normal((50, n)), "C")
        given, H = block.copy(), laid(np.eye(n), "F")
        lapack.add_gram(1.0, block, H)
        full = np.eye(n) + given.T.astype(np.float64) @ given
        np.testing.assert_allclose(np.tril(H), np.tril(full), rtol=close, atol=20 * close)
        lapack.add_gram(-1.0, block[:2], H)
        full -= given[:2].T.astype(np.float64) @ given[:2]
        assert lapack.factorise(H)
        lower = np.tril(H).astype(np.float64)
        np.testing.assert_allclose(lower @ lower.T, full, atol=20 * close * np.abs(full).max())
        for k in (0, 1, 2, 5):
            right = laid(rng.standard_normal((k, n)), "C")
            expected = np.linalg.solve(lower, right.T.astype(np.float64)).T
            lapack.solve_rows(H, right)
            np.testing.assert_allclose(right, expected, atol=close * 10)
        assert np.array_equal(block, given)
    assert not lapack.factorise(laid(np.diag([1.0, 1.0, -1.0]), "F"))
    assert not lapack.factorise(laid([[1.0, 2.0], [2.0, 1.0]], "F"))


def test_this_scipy_gives_the_addresses():
    for name in lapack.ARGUMENTS:
        for dtype in (np.float32, np.float64):
            assert lapack._routine(name, np.dtype(dtype)) is not None


@pytest.mark.parametrize("integer", [None, b"int64_t"])
def test_an_interface_of_other_integers_is_left_alone(monkeypatch, integer):
    capsules = {}
    if integer is not None:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        name = b"void (char *, char *, I *, I *, d *, d *, I *, d *, d *, I *)"
        name = ctypes.create_string_buffer(name.replace(b"I", integer))
        capsules["dsyrk"] = new(1, name, None)
    monkeypatch.setattr(lapack, "cython_blas", types.SimpleNamespace(__pyx_capi__=capsules))
    assert lapack._routine.__wrapped__("syrk", np.dtype(np.float64)) is None


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_the_wrappers_give_the_same_answers(monkeypatch, formulation):
    problem = instances.random_relu_layer(90, 24, 6, formulation=formulation, seed=2).problem
    direct = solve(problem, tol_gap=1e-9, tol_feas=1e-9)
    monkeypatch.setattr(lapack, "_routine", lambda name, dtype: None)
    other = solve(problem, tol_gap=1e-9, tol_feas=1e-9)
    assert direct.status is other.status is Status.OPTIMAL
    size = np.abs(direct.W).max()
    np.testing.assert_allclose(other.W, direct.W, atol=TOLERANCE["independent_outputs"] * size)


def block_at(solution, problem, rho=20.0):
    """A block that starts at a solution."""
    f = Factorisation(problem)
    lower, upper = (np.ascontiguousarray(end.T) for end in problem.box())
    penalty = np.broadcast_to(problem.penalty() / f.norm[:, None], (f.n_inputs, len(lower)))
    V = np.ascontiguousarray((solution.W * f.norm[:, None]).T)
    beta = f.mean @ solution.W + (0.0 if solution.b is None else solution.b)
    start = V, beta, solution.theta.T.copy(), None
    return Block(
        f, lower, upper, np.ascontiguousarray(penalty.T),
        None if problem.penalised else problem.epsilon,
        problem.lambda_ if problem.penalised else None,
        problem.strict, start, np.full(len(lower), rho), 1.7, np.float64,
    )  # fmt: skip


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_the_optimum_is_a_fixed_point_of_the_iteration(formulation, radius, intercept):
    problem = instances.random_layer(
        50, 12, 3, formulation=formulation, radius=radius, intercept=intercept, seed=6
    ).problem
    solution = solve(problem, tol_gap=1e-11, tol_feas=1e-11)
    assert solution.status is Status.OPTIMAL
    block = block_at(solution, problem)
    state = block.S.copy()
    for _ in range(3):
        block.project()
        block.measure()
        block.advance()
    size = np.abs(state).max()
    np.testing.assert_allclose(block.S, state, atol=TOLERANCE["fixed_point"] * size)
    np.testing.assert_allclose(
        block.dual.T, solution.theta, atol=TOLERANCE["fixed_point"] * np.abs(block.dual).max()
    )
    np.testing.assert_allclose(
        block.answer.T / block.factorisation.norm[:, None], solution.W,
        atol=TOLERANCE["fixed_point"] * np.abs(solution.W).max(),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])
@pytest.mark.parametrize("intercept", [False, True])
def test_a_move_is_measured_in_the_graph_norm(shape, intercept):
    problem = instances.random_layer(*shape, 3, intercept=intercept, seed=6).problem
    block = block_at(solve(problem.replace(tolerance=0.6)), problem)
    block.project()
    block.mark()
    V, Z = block.V.copy(), block.Z + block.shift[:, None] - block.beta[:, None]
    block.advance()
    block.project()
    moved_V = block.V - V
    moved_Z = block.Z + block.shift[:, None] - block.beta[:, None] - Z
    expected = block.factorisation.kappa * np.sum(moved_V**2, axis=1) + np.sum(moved_Z**2, axis=1)
    np.testing.assert_allclose(block.moved(), expected, rtol=TOLERANCE["factorisation"])
    assert expected.min() > 0.0 and block.marked is None


def test_a_change_of_rho_keeps_the_dual_point():
    problem = instances.random_layer(50, 12, 3, seed=6).problem
    start = solve(problem.replace(tolerance=0.4))
    block = block_at(start, problem)
    for _ in range(5):
        block.project()
        block.advance()
    block.project()
    before = block.rho[:, None] * (block.Z + block.shift[:, None] - block.S)
    block.change_rho(np.array([0.25, 1.0, 4.0]))
    after = block.rho[:, None] * (block.Z + block.shift[:, None] - block.S)
    np.testing.assert_allclose(after, before, rtol=TOLERANCE["reordered"])
    np.testing.assert_allclose(block.sums, block.S.sum(axis=1), rtol=TOLERANCE["reordered"])


@pytest.mark.parametrize("strict", [False, True])
def test_without_polish_the_iteration_converges_by_itself(strict):
    problem = instances.random_layer(
        60, 10, 3, formulation="strict" if strict else "pooled", seed=7
    ).problem
    solution = solve(problem, polish=False, max_iter=3000)
    assert solution.certificate.violation < TOLERANCE["plain_admm"]
    assert abs(solution.certificate.gap) < TOLERANCE["plain_admm"]


def test_proved_outputs_leave_the_block():
    problem = instances.random_relu_layer(90, 24, 8, tolerance=0.1, seed=2).problem
    counts = []
    solution = solve(problem, callback=lambda progress: counts.append(progress.n_proved))
    assert solution.status is Status.OPTIMAL
    assert np.all(np.diff(counts) >= 0)
    assert len(set(solution.iterations)) > 1
    slowest = np.argmax(solution.iterations)
    alone = solve(problem.select([slowest]))
    assert alone.iterations[0] == solution.iterations[slowest]


@pytest.mark.parametrize(("limit", "width"), [(1, 1), (ARRAYS * 8 * 90 * 3, 3), (2**30, 8)])
def test_the_memory_limit_sets_the_blocks(limit, width):
    problem = instances.random_relu_layer(90, 24, 8, seed=2).problem
    settings = admm.Settings(memory_limit=limit)
    run = separable.Run(problem, settings, Context(), Factorisation(problem), None)
    blocks = run.blocks()
    assert max(map(len, blocks)) == width
    assert np.array_equal(np.concatenate(blocks), np.arange(8))


def test_memory_beyond_the_inputs_stays_within_the_limit():
    problem = instances.random_relu_layer(1500, 8, 128, tolerance=0.3).problem
    settings = admm.Settings(memory_limit=5 * 8 * 1500 * 64, dtype="float64")
    admm.solve(problem, settings, Context())
    tracemalloc.start()
    try:
        raw = admm.solve(problem, settings, Context())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The dual point is part of the answer, of the size of all outputs.
    assert peak - raw.theta.nbytes <= TOLERANCE["memory"] * settings.memory_limit


# Answers ---------------------------------------------------------------------------------------


def test_zeros_are_exact_and_positive():
    solution = solve(instances.random_relu_layer(90, 24, 5, tolerance=0.3).problem)
    assert 0.1 < solution.sparsity < 1.0
    zeros = solution.W[solution.W == 0]
    assert not np.signbit(zeros).any()
    assert np.abs(solution.W[solution.W != 0]).min() > 1e-9


@pytest.mark.parametrize("radius", RADII)
def test_dead_and_repeated_inputs(radius):
    problem = instances.random_layer(
        40, 12, 3, radius=radius, intercept=True, seed=8,
        defects=["zero_column", "constant_feature", "dead_output", "duplicate_columns"],
    ).problem  # fmt: skip
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL
    assert not solution.W[[0, -1]].any(), "the intercept is free, a constant input is not"
    assert not solution.W[:, 0].any()


def test_multipliers_rho_and_iterations_have_an_entry_per_output():
    for radius in RADII:
        problem = instances.random_relu_layer(60, 12, 4, radius=radius, tolerance=0.2).problem
        solution = solve(problem)
        assert solution.multiplier.shape == solution.rho.shape == solution.iterations.shape == (4,)
        assert np.all(solution.multiplier > 0)
        assert solution.theta.shape == (60, 4)
        assert solution.seconds.keys() >= {"setup", "admm", "polish", "certify", "total"}


@pytest.mark.parametrize("rho", [0.0, -1.0, np.nan])
def test_a_warm_rho_that_cannot_be_one_is_ignored(rho):
    problem = instances.random_relu_layer(60, 12, 4, radius="per_output", tolerance=0.2).problem
    first = solve(problem)
    warm = dataclasses.replace(first, rho=np.full(4, rho))
    assert solve(problem.replace(tolerance=0.1), warm_start=warm).status is Status.OPTIMAL


# Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_iter", 0), ("max_iter", 1.5), ("max_iter", True), ("check_interval", 0),
        ("polish_sweeps", 0), ("memory_limit", 0), ("time_limit", 0.0), ("time_limit", "1"),
        ("time_limit", np.nan), ("rho", 0.0), ("rho", np.inf), ("relaxation", 0.9),
        ("relaxation", 2.0), ("relaxation", None), ("dtype", "float16"), ("dtype", np.float32),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(name, value):
    problem = instances.random_layer(30, 8, 2).problem
    with pytest.raises(SettingsError, match=f"^{name} must"):
        solve(problem, **{name: value})


@pytest.mark.parametrize("spread", [1e-15, 1e-13, 1e-11, 1e-8])
def test_inputs_that_hardly_vary_are_solved(spread):
    # Saturated units: constant but for the last digits, beside ordinary inputs.
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 6))
    X[:, :3] = [1, -1, 1] + spread * X[:, :3]
    Y = np.maximum(X[:, 3:] @ rng.standard_normal((3, 2)), 0)
    assert solve(Problem(X, Y, tolerance=0.2)).status is Status.OPTIMAL


@pytest.mark.parametrize("seed", range(4))
def test_unpenalised_columns_where_the_ball_has_no_force(seed):
    # Their products with y vanish but for rounding, which is measured against the hard rows' y.
    rng = np.random.default_rng(seed)
    X, side = rng.standard_normal((25, 20)), rng.choice([-1.0, 1.0], (25, 2))
    lower, upper = np.where(side > 0, 1.0, -np.inf), np.where(side > 0, np.inf, -1.0)
    lower[:5] = upper[:5] = 0.0
    weights = np.r_[np.zeros(2), np.ones(18)]
    problem = Problem(
        X, lower=lower, upper=upper, epsilon=50.0, formulation="strict", radius="per_output",
        weights=weights,
    )  # fmt: skip
    solution = solve(problem, max_iter=200)
    assert solution.status is Status.OPTIMAL
    assert solution.certificate.distances.max() < 50.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_products_do_not_depend_on_how_many_outputs_there_are(dtype, order):
    rng = np.random.default_rng(2)
    X = np.asarray(rng.standard_normal((70, 9)), dtype=dtype, order=order)
    f = Factorisation(Problem(X, np.ones((70, 1)), tolerance=0.1))
    m = 2 * factorisation.FEW
    V = rng.standard_normal((m, 9)).astype(dtype)
    S = (rng.standard_normal((m, 70)) * (rng.random((m, 70)) < 0.3)).astype(dtype)
    (Z, shift), product = f.forward(V), f.adjoint(S)
    for few in (1, factorisation.VERY_FEW, factorisation.FEW):
        some = slice(3, 3 + few)
        (part, level), back = f.forward(V[some]), f.adjoint(S[some])
        accuracy = TOLERANCE["kernel_single" if dtype == np.float32 else "kernel_double"]
        np.testing.assert_allclose(part, Z[some], atol=20 * accuracy)
        np.testing.assert_allclose(level, shift[some], atol=20 * accuracy)
        np.testing.assert_allclose(back, product[some], atol=20 * accuracy)


@pytest.mark.parametrize("workers", [True, False])
def test_workers_share_large_problems_only(monkeypatch, workers):
    problem = instances.random_relu_layer(40, 8, 3, tolerance=0.2).problem
    size = problem.n_samples * problem.n_inputs * problem.n_outputs
    monkeypatch.setattr(admm, "SHARED_FROM", size if workers else size + 1)
    pool, counts = admm.ThreadPoolExecutor, []
    monkeypatch.setattr(admm, "ThreadPoolExecutor", lambda n: (counts.append(n), pool(n))[1])
    assert solve(problem, n_threads=2).status is Status.OPTIMAL
    assert solve(problem, n_threads=1).status is Status.OPTIMAL
    assert counts == ([2] if workers else [])

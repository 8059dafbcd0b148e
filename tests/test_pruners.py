"""What every pruner promises, whatever its method; covers all solvers that are not convex."""

import numpy as np
import pytest
import scipy.sparse as sp

from nettrim_solver import Problem, Status, solve
from nettrim_solver.exceptions import ProblemError, SettingsError, UnsupportedError
from nettrim_solver.problem import RADII
from nettrim_solver.solvers import SOLVERS

from .tolerances import TOLERANCE

PRUNERS = [name for name, info in SOLVERS.items() if not info.convex and not info.missing()]

#: Their scores do not know the units of the inputs.
UNIT_BOUND = {"magnitude"}

pytestmark = pytest.mark.parametrize("solver", PRUNERS)


def arrays(n_samples=40, n_inputs=8, n_outputs=5, seed=0):
    """Correlated inputs with a mean, trained weights and intercept, and what they make."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_inputs)) @ rng.standard_normal((n_inputs, n_inputs)) + 1.0
    W, b = rng.standard_normal((n_inputs, n_outputs)), rng.standard_normal(n_outputs)
    return {"X": X, "Y": X @ W + b, "W": W, "b": b}


def layer(n_samples=40, n_inputs=8, n_outputs=5, seed=0, **changes):
    given = arrays(n_samples, n_inputs, n_outputs, seed) | {"activation": "identity"} | changes
    return Problem(**given)


def behind_pruned_layers(seed=0):
    """The target is the original layer's, the inputs are not: W does not fit them best."""
    given = arrays(seed=seed)
    given["X"] = given["X"] + 0.3 * np.random.default_rng(1).standard_normal(given["X"].shape)
    return Problem(**given, activation="identity")


def same(first, second, tolerance="same_answer"):
    np.testing.assert_array_equal(first.W != 0, second.W != 0)
    atol = TOLERANCE[tolerance] * np.max(np.abs(second.W), initial=1.0)
    np.testing.assert_allclose(first.W, second.W, rtol=0, atol=atol)


# Budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "output"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.87])
@pytest.mark.parametrize("make", [layer, behind_pruned_layers])
def test_the_number_of_zeros_is_exact(solver, make, sparsity, scope):
    solution = solve(make(), solver, sparsity=sparsity, scope=scope)
    assert np.all(np.isfinite(solution.W)) and np.all(np.isfinite(solution.b))
    assert np.count_nonzero(solution.W == 0) == round(sparsity * 40)
    if scope == "output":
        assert np.ptp(solution.certificate.nnz) <= 1
    assert solution.status is Status.PRUNED
    by_count = solve(make(), solver, nnz=solution.nnz, scope=scope)
    np.testing.assert_array_equal(by_count.W, solution.W)


@pytest.mark.parametrize("scope", ["layer", "output"])
@pytest.mark.parametrize("pattern", ["1:2", "3:4"])
@pytest.mark.parametrize("make", [layer, behind_pruned_layers])
def test_patterns_hold_in_every_group(solver, make, pattern, scope):
    kept, group = map(int, pattern.split(":"))
    solution = solve(make(), solver, pattern=pattern, scope=scope)
    counts = np.count_nonzero(solution.W.reshape(8 // group, group, 5), axis=1)
    np.testing.assert_array_equal(counts, kept)


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_nothing_may_be_left(solver, scope):
    problem = layer()
    solution = solve(problem, solver, nnz=0, scope=scope)
    assert not solution.W.any()
    np.testing.assert_allclose(solution.b, problem.Y.mean(axis=0), rtol=TOLERANCE["reordered"])


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_radius_is_kept_and_used(solver, activation, radius):
    given = arrays()
    given["Y"] = np.maximum(given["Y"], 0.0) if activation == "relu" else given["Y"]
    problem = Problem(**given, activation=activation, tolerance=0.4, radius=radius)
    solution = solve(problem, solver)
    assert set(solution.statuses) <= {Status.FEASIBLE, Status.OPTIMAL}
    assert solution.certificate.violation <= 1e-6
    assert solution.nnz < given["W"].size
    tighter = solve(problem.replace(tolerance=0.05), solver)
    assert tighter.status is Status.FEASIBLE and tighter.nnz > solution.nnz


# What goes in ------------------------------------------------------------------------------------


def test_inputs_are_neither_changed_nor_aliased(solver):
    given = arrays()
    copies = {name: array.copy() for name, array in given.items()}
    problem = Problem(**given, activation="identity", tolerance=0.3)
    for settings in ({}, {"sparsity": 0.0}, {"sparsity": 0.5}, {"pattern": "2:4"}):
        solution = solve(problem, solver, **settings)
        for name, array in given.items():
            np.testing.assert_array_equal(array, copies[name])
            assert not np.shares_memory(array, solution.W)
            assert not np.shares_memory(array, solution.b)
        assert solution.W.flags.writeable and solution.b.flags.writeable


def test_the_same_bits_twice(solver):
    for settings in ({"sparsity": 0.5}, {"pattern": "2:4"}):
        first, second = (solve(layer(), solver, **settings) for _ in range(2))
        assert first.W.tobytes() == second.W.tobytes()
        assert first.b.tobytes() == second.b.tobytes()


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_float32_is_close_to_float64(solver, scope):
    problem = layer()
    given = {name: getattr(problem, name).astype(np.float32) for name in ("X", "Y", "W", "b")}
    single = solve(Problem(**given, activation="identity"), solver, sparsity=0.5, scope=scope)
    assert single.W.dtype == single.b.dtype == np.float32
    same(single, solve(problem, solver, sparsity=0.5, scope=scope), "single_precision")


def test_sparse_samples_give_the_same_answer(solver):
    given = arrays()
    given["X"] = np.where(given["X"] > 0.5, given["X"], 0.0)
    given["Y"] = given["X"] @ given["W"] + given["b"]
    dense, sparse = (
        solve(Problem(**given | {"X": X}, activation="identity"), solver, sparsity=0.5)
        for X in (given["X"], sp.csr_array(given["X"]))
    )
    same(sparse, dense)


@pytest.mark.parametrize("shape", [(5, 8, 4), (1, 8, 4), (40, 1, 4), (40, 8, 1), (1, 1, 1)])
def test_few_samples_inputs_or_outputs(solver, shape):
    problem = layer(*shape)
    solution = solve(problem, solver, sparsity=0.5, intercept="keep")
    assert np.all(np.isfinite(solution.W))
    assert np.count_nonzero(solution.W == 0) == round(0.5 * solution.W.size)
    solution = solve(problem, solver, sparsity=0.5)
    assert np.all(np.isfinite(solution.W)) and np.all(np.isfinite(solution.b))
    # With one sample and the intercept solved for, no input carries a signal.
    zeros = solution.W.size if shape[0] == 1 else round(0.5 * solution.W.size)
    assert np.count_nonzero(solution.W == 0) == zeros


@pytest.mark.parametrize("constant", [0.0, 3.7])
@pytest.mark.parametrize("scope", ["layer", "output"])
def test_an_input_without_signal_counts_as_zeros_and_does_not_matter(solver, scope, constant):
    given = arrays()
    given["X"][:, 2] = constant
    given["Y"] = given["X"] @ given["W"] + given["b"]
    live = np.arange(8) != 2
    rest = given | {"X": given["X"][:, live], "W": given["W"][live]}
    rest["b"] = given["b"] + constant * given["W"][2]
    for nnz in (35, 20, 5):
        whole = solve(Problem(**given, activation="identity"), solver, nnz=nnz, scope=scope)
        without = solve(Problem(**rest, activation="identity"), solver, nnz=nnz, scope=scope)
        assert not whole.W[2].any() and whole.nnz == nnz
        np.testing.assert_array_equal(whole.W[live] != 0, without.W != 0)
        np.testing.assert_allclose(whole.W[live], without.W, atol=TOLERANCE["same_answer"])
        np.testing.assert_allclose(whole.b, without.b, atol=TOLERANCE["same_answer"])
    solution = solve(Problem(**given, activation="identity"), solver, nnz=40)
    assert solution.nnz == 35
    groups = solve(Problem(**given, activation="identity"), solver, pattern="2:4").W != 0
    assert not groups[2].any()
    np.testing.assert_array_equal(groups.reshape(2, 4, 5).sum(axis=1), 2)


@pytest.mark.parametrize("settings", [{"sparsity": 0.5}, {"sparsity": 0.2}, {"pattern": "2:4"}])
def test_weights_that_are_zero_already_count(solver, settings):
    given = arrays()
    given["W"] = np.where(np.abs(given["W"]) < 0.6, 0.0, given["W"])
    given["Y"] = given["X"] @ given["W"] + given["b"]
    trained = np.count_nonzero(given["W"])
    assert 20 < trained < 32
    solution = solve(Problem(**given, activation="identity"), solver, scope="layer", **settings)
    assert np.all(np.isfinite(solution.W))
    assert solution.nnz <= 40 - round(40 * settings.get("sparsity", 0.5))
    if "pattern" not in settings and trained > 40 - round(40 * settings["sparsity"]):
        assert solution.nnz == 40 - round(40 * settings["sparsity"])


def test_a_dead_output_stays_dead(solver):
    given = arrays()
    given["W"][:, 1], given["b"][1] = 0.0, 0.0
    given["Y"] = given["X"] @ given["W"] + given["b"]
    solution = solve(Problem(**given, activation="identity"), solver, nnz=16)
    np.testing.assert_allclose(solution.W[:, 1], 0.0, atol=TOLERANCE["same_answer"])
    np.testing.assert_allclose(solution.b[1], 0.0, atol=TOLERANCE["same_answer"])


# What must not matter ----------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_without_zeros_the_trained_weights_come_back(solver, scope):
    problem = layer()
    solution = solve(problem, solver, sparsity=0.0, scope=scope)
    np.testing.assert_allclose(solution.W, problem.W, atol=TOLERANCE["same_answer"])
    np.testing.assert_allclose(solution.b, problem.b, atol=TOLERANCE["same_answer"])


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_permuted_outputs_are_permuted_answers(solver, scope):
    given, order = arrays(), [3, 0, 4, 2, 1]
    other = given | {"W": given["W"][:, order], "Y": given["Y"][:, order], "b": given["b"][order]}
    first, second = (
        solve(Problem(**a, activation="identity"), solver, sparsity=0.45, scope=scope)
        for a in (given, other)
    )
    np.testing.assert_array_equal(first.W[:, order] != 0, second.W != 0)
    np.testing.assert_allclose(first.W[:, order], second.W, atol=TOLERANCE["same_answer"])


def test_permuted_samples_give_the_same_answer(solver):
    given, order = arrays(), np.random.default_rng(2).permutation(40)
    other = given | {"X": given["X"][order], "Y": given["Y"][order]}
    same(
        solve(Problem(**other, activation="identity"), solver, sparsity=0.5),
        solve(Problem(**given, activation="identity"), solver, sparsity=0.5),
    )


@pytest.mark.parametrize(("inputs", "outputs"), [(2.0**12, 1.0), (1.0, 2.0**-9), (2.0**-7, 2.0**5)])
def test_the_units_of_the_layer_do_not_matter(solver, inputs, outputs):
    given = arrays()
    other = {
        "X": inputs * given["X"], "Y": outputs * given["Y"],
        "W": outputs / inputs * given["W"], "b": outputs * given["b"],
    }  # fmt: skip
    first, second = (
        solve(Problem(**a, activation="identity"), solver, sparsity=0.6) for a in (given, other)
    )
    np.testing.assert_array_equal(first.W != 0, second.W != 0)
    np.testing.assert_allclose(
        second.W * inputs / outputs, first.W, atol=TOLERANCE["same_answer"]
    )  # fmt: skip


def test_the_unit_of_every_input_does_not_matter(solver):
    given, units = arrays(), 2.0 ** np.arange(-4, 4)
    other = given | {"X": given["X"] * units, "W": given["W"] / units[:, None]}
    first, second = (
        solve(Problem(**a, activation="identity"), solver, sparsity=0.6, damping=0.0)
        for a in (given, other)
    )
    if solver in UNIT_BOUND:
        assert np.any((first.W != 0) != (second.W != 0))
        return
    np.testing.assert_array_equal(first.W != 0, second.W != 0)
    np.testing.assert_allclose(second.W * units[:, None], first.W, atol=TOLERANCE["same_answer"])


# Early ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"nnz": 16}, {"pattern": "2:4", "scope": "output"}, {}])
def test_out_of_time_it_returns_the_trained_weights(solver, budget):
    problem = layer(tolerance=0.3)
    late = solve(problem, solver, time_limit=1e-9, **budget)
    assert late.status is Status.TIME_LIMIT
    np.testing.assert_array_equal(late.W, problem.W)
    np.testing.assert_array_equal(late.b, problem.b)
    in_time = solve(problem, solver, time_limit=1e4, **budget)
    np.testing.assert_array_equal(in_time.W, solve(problem, solver, **budget).W)


def press(progress):
    raise KeyboardInterrupt


@pytest.mark.parametrize("budget", [{"nnz": 16}, {"nnz": 15, "scope": "output"}, {}])
@pytest.mark.parametrize("end", [lambda progress: True, press])
def test_stopped_at_any_step_it_has_an_answer(solver, budget, end):
    problem, seen = layer(tolerance=0.3), []
    whole = solve(problem, solver, callback=lambda progress: seen.append(progress), **budget)
    assert [progress.iteration for progress in seen] == list(range(1, len(seen) + 1)) != []
    np.testing.assert_array_equal(whole.W, solve(problem, solver, **budget).W)
    steps = len(seen)
    for step in {1, 2, steps // 2, steps} - {0}:
        stopped = solve(
            problem, solver, callback=lambda at, step=step: at.iteration == step and end(at),
            **budget,
        )  # fmt: skip
        assert stopped.status is Status.INTERRUPTED
        if budget and stopped.nnz > budget["nnz"]:
            np.testing.assert_array_equal(stopped.W, problem.W)
            np.testing.assert_array_equal(stopped.b, problem.b)
        elif budget:
            assert stopped.nnz == budget["nnz"]
        else:
            assert stopped.certificate.violation <= 1e-6 and stopped.nnz >= whole.nnz


# The intercept -----------------------------------------------------------------------------------


def test_the_intercept_is_kept_or_solved_for(solver):
    problem = layer()
    kept = solve(problem, solver, sparsity=0.6, intercept="keep")
    np.testing.assert_array_equal(kept.b, problem.b)
    solved = solve(problem, solver, sparsity=0.6)
    residual = problem.Y - problem.X @ solved.W - solved.b
    np.testing.assert_allclose(residual.mean(axis=0), 0.0, atol=TOLERANCE["same_answer"])
    without = layer(Y=problem.Y - problem.b, b=None, intercept=False)
    none = solve(without, solver, sparsity=0.6)
    assert none.b is None
    np.testing.assert_array_equal(none.W, solve(without, solver, sparsity=0.6, intercept="keep").W)
    np.testing.assert_allclose(none.W, kept.W, atol=TOLERANCE["same_answer"])


# Bad input ---------------------------------------------------------------------------------------


def test_what_cannot_be_pruned_is_refused(solver):
    with pytest.raises(UnsupportedError, match=f"'{solver}'.*give W to the problem"):
        solve(layer(W=None), solver, sparsity=0.5)
    with pytest.raises(UnsupportedError, match=f"'{solver}'.*weights other than ones"):
        solve(layer(weights=np.full(8, 2.0)), solver, sparsity=0.5)
    with pytest.raises(ProblemError, match="budget.*sparsity, nnz or pattern"):
        solve(layer(), solver)
    with pytest.raises(ProblemError, match="epsilon must be within reach"):
        solve(layer(Y=np.random.default_rng(0).standard_normal((40, 5)), epsilon=1e-3), solver)
    for settings, error, message in [
        ({"sparsity": 1.0}, SettingsError, "sparsity must"),
        ({"nnz": 41}, ProblemError, "nnz must be at most 40"),
        ({"pattern": "2:3"}, ProblemError, "pattern='2:3'.*3 divides.*X has 8"),
        ({"nnz": 3, "pattern": "2:4"}, SettingsError, "give one of"),
        ({"nnz": 3, "scope": "all"}, SettingsError, "scope must"),
        ({"nnz": 3, "damping": np.nan}, SettingsError, "damping must"),
    ]:
        with pytest.raises(error, match=message):
            solve(layer(), solver, **settings)

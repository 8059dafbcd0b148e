"""Interruptions, limits, impossible problems, lying solvers, threads, forks and bare installs."""

import os
import shutil
import signal
import subprocess
import sys
import types
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import nettrim_solver
from nettrim_solver import Problem, Status, certify, instances, solve
from nettrim_solver.exceptions import InfeasibleError, SolverError
from nettrim_solver.problem import RADII
from nettrim_solver.solution import RawSolution
from nettrim_solver.solvers import SOLVERS, SolverInfo, kernels
from nettrim_solver.solvers.admm import polish
from nettrim_solver.solvers.admm.factorisation import Factorisation
from nettrim_solver.solvers.admm.finish import Finish

from .tolerances import TOLERANCE

ROOT = Path(nettrim_solver.__file__).resolve().parent.parent

FORMS = [
    (formulation, radius)
    for formulation, radius in product(("pooled", "strict", "penalised", "penalised_strict"), RADII)
    if radius == "per_output" or not formulation.startswith("penalised")
]

TINY = """
import numpy as np
from nettrim_solver import Problem, Status, solve
rng = np.random.default_rng(0)
X = rng.standard_normal((40, 8))
Y = np.maximum(X @ rng.standard_normal((8, 3)), 0)
problem = Problem(X, Y, tolerance=0.2, radius="per_output")
"""


def make(formulation="pooled", radius="per_output", **changes):
    options = {"intercept": True, "tolerance": 0.1, "seed": 2} | changes
    return instances.random_relu_layer(
        90, 24, 5, formulation=formulation, radius=radius, **options
    ).problem


def python(*arguments, timeout=120, cwd=None, **variables):
    """Run a fresh interpreter on this package; return its output, and fail with its traceback."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR",)}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=kept | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True, text=True, timeout=timeout, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip()


def assert_honest(problem, solution):
    """The certificate is that of the very weights returned, and the status does not exceed it."""
    again = certify(problem, solution.W, solution.b, solution.theta)
    assert np.array_equal(again.gaps, solution.certificate.gaps)
    assert np.array_equal(again.violations, solution.certificate.violations)
    assert np.all(np.isfinite(solution.W))
    proved = np.broadcast_to(again.proved(1e-6, 1e-6), problem.n_outputs)
    assert [status is Status.OPTIMAL for status in solution.statuses] == list(proved)


# Stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_the_callback_stops_the_run(formulation, radius):
    problem, seen = make(formulation, radius), []
    solution = solve(problem, callback=lambda progress: seen.append(progress) or True)
    assert solution.status is Status.INTERRUPTED
    assert len(seen) == 1 and seen[0].n_outputs == 5 and seen[0].elapsed > 0
    assert_honest(problem, solution)
    assert np.any(solution.W), "the best answer so far is not all zeros"


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_the_callback_sees_every_check(formulation, radius):
    problem, seen = make(formulation, radius), []
    assert solve(problem, callback=lambda progress: seen.append(progress)).status is Status.OPTIMAL
    assert len(seen) >= 2
    assert all(0 <= progress.n_proved <= 5 for progress in seen)
    assert np.all(np.diff([progress.elapsed for progress in seen]) >= 0)


def test_an_error_in_the_callback_is_the_callers_own():
    def fail(progress):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        solve(make(), callback=fail)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_a_time_limit_leaves_an_honest_answer(formulation, radius, blocks):
    problem = make(formulation, radius)
    memory = {"memory_limit": 5 * 8 * 90 * 2} if blocks else {}
    solution = solve(problem, time_limit=1e-9, **memory)
    assert solution.status is Status.TIME_LIMIT
    assert_honest(problem, solution)


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_a_single_iteration_leaves_an_honest_answer(formulation, radius):
    problem = make(formulation, radius)
    solution = solve(problem, max_iter=1, polish=False)
    assert solution.status in (Status.MAX_ITERATIONS, Status.UNPROVED)
    assert_honest(problem, solution)
    assert solution.iterations.max() == 1
    with pytest.raises(SolverError) as caught:
        solve(problem, max_iter=1, polish=False, raise_on_failure=True)
    assert np.array_equal(caught.value.solution.W, solution.W)
    assert not isinstance(caught.value, InfeasibleError)


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_more_iterations_do_not_make_the_answer_worse(formulation, radius):
    problem = make(formulation, radius)
    few = solve(problem, max_iter=2, polish=False).certificate
    many = solve(problem, max_iter=300, polish=False).certificate
    assert many.violation <= few.violation + TOLERANCE["proved"]
    assert abs(many.gap) < abs(few.gap) or abs(few.gap) < TOLERANCE["proved"]


# Ctrl-C ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_a_signal_is_a_clean_stop(formulation, radius):
    problem = make(formulation, radius)
    solution = solve(problem, callback=lambda progress: signal.raise_signal(signal.SIGINT))
    assert solution.status is Status.INTERRUPTED
    assert_honest(problem, solution)


#: Where the user may press Ctrl-C: the stages of a run, by functions that each of them calls.
STAGES = {
    "start": (kernels, "best_constants"),
    "iteration": (kernels, "advance"),
    "check": (kernels, "measure"),
    "products": (Factorisation, "project"),
    "polish": (polish, "evaluate"),
    "infeasibility": (Finish, "refute"),
}


@pytest.mark.parametrize(
    ("stage", "call"), [*product(STAGES, [1]), *product(list(STAGES)[:-1], [2])]
)
@pytest.mark.parametrize("radius", RADII)
def test_ctrl_c_anywhere_is_a_clean_stop(monkeypatch, radius, call, stage):
    owner, name = STAGES[stage]
    plain, calls = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        calls.append(stage)
        if len(calls) == call:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    problem = make(radius=radius)
    if stage == "infeasibility":
        problem = instances.infeasible(radius=radius, seed=1).problem
    monkeypatch.setattr(owner, name, interrupted)
    try:
        solution = solve(problem, memory_limit=5 * 8 * 90 * 3)
    except KeyboardInterrupt:
        pytest.fail("the interrupt went through: no answer, and a traceback for the user")
    monkeypatch.undo()
    assert len(calls) >= call, "the run never came to this stage"
    assert solution.status is Status.INTERRUPTED
    assert_honest(problem, solution)


def test_ctrl_c_in_a_program_leaves_no_traceback():
    script = (
        TINY
        + """
import os, signal, threading
large = Problem(*(np.tile(A, (200, 1)) for A in (X, Y)), tolerance=1e-4, radius="per_output")
solve(problem)
pid = os.getpid()
def check(progress):
    if progress.iteration == 20:
        os.kill(pid, signal.SIGINT)
solution = solve(large, callback=check, polish=False, max_iter=10**6, time_limit=60)
print(solution.status, bool(np.isfinite(solution.W).all()), solution.iterations.max() < 100)
"""
    )
    assert python("-c", script) == "interrupted True True"


# What cannot be solved -------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize(
    ("kind", "formulation"), [("radius", "pooled"), ("radius", "strict"), ("hard_rows", "strict")]
)
def test_the_least_radius_is_proved(kind, formulation, radius, intercept):
    bad = instances.infeasible(
        kind=kind, formulation=formulation, radius=radius, intercept=intercept, seed=1
    )
    solution = solve(bad.problem)
    assert solution.status is Status.INFEASIBLE
    np.testing.assert_allclose(
        solution.least_epsilon, bad.least_epsilon, rtol=TOLERANCE["least_radius"]
    )
    assert str(solution.least_epsilon.max())[:4] in solution.explain()
    with pytest.raises(InfeasibleError, match="Least reachable epsilon") as caught:
        solve(bad.problem, raise_on_failure=True)
    assert caught.value.solution.status is Status.INFEASIBLE


@pytest.mark.parametrize("fraction", [0.05, 0.9, 0.999])
@pytest.mark.parametrize("radius", RADII)
def test_radii_hardly_out_of_reach_are_refuted(radius, fraction):
    bad = instances.infeasible(fraction=fraction, radius=radius, seed=3)
    solution = solve(bad.problem)
    assert solution.status is Status.INFEASIBLE
    np.testing.assert_allclose(
        solution.least_epsilon, bad.least_epsilon, rtol=TOLERANCE["least_radius"]
    )


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
@pytest.mark.parametrize("radius", RADII)
def test_the_least_radius_itself_can_be_asked_for(radius, formulation):
    bad = instances.infeasible(radius=radius, formulation=formulation, seed=1)
    least = solve(bad.problem).least_epsilon
    assert least is not None
    level = 1.001 * (float(least[0]) if radius == "joint" else least)
    solution = solve(bad.problem.replace(epsilon=level))
    assert solution.status is Status.OPTIMAL and solution.least_epsilon is None


@pytest.mark.parametrize("lambda_", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("intercept", [False, True])
def test_contradictory_hard_rows_are_refuted_at_any_penalty(intercept, lambda_):
    bad = instances.infeasible(kind="hard_rows", intercept=intercept, seed=2).problem
    solution = solve(bad.penalise(lambda_))
    assert set(solution.statuses) == {Status.INFEASIBLE}
    assert np.isinf(solution.least_epsilon).all()
    assert solution.iterations.max() < 1000, "refuted long before the iteration limit"


def test_an_output_with_contradictory_hard_rows_leaves_the_others_their_proof():
    bad = instances.infeasible(kind="hard_rows", seed=2).problem
    lower, upper = (end.copy() for end in bad.box())
    lower[:, 1] = np.where(lower[:, 1] == upper[:, 1], lower[:, 1], -np.inf)
    mixed = bad.replace(lower=lower, upper=upper).penalise(0.1)
    solution = solve(mixed)
    assert solution.statuses == (Status.INFEASIBLE, Status.OPTIMAL, Status.INFEASIBLE)


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_a_joint_radius_of_zero_out_of_reach_is_refuted(formulation):
    bad = instances.infeasible(formulation=formulation, radius="joint", seed=1)
    solution = solve(bad.problem.replace(epsilon=0.0))
    assert solution.status is Status.INFEASIBLE
    np.testing.assert_allclose(
        solution.least_epsilon, bad.least_epsilon, rtol=TOLERANCE["least_radius"]
    )


def test_a_joint_radius_in_reach_of_the_unpenalised_weights_alone():
    # Zero penalised weights are then optimal, though all weights zero are out of the radius.
    layer = instances.random_layer(120, 20, 3, activation="relu6", seed=3).problem
    lower, upper = layer.box()
    weights = np.where(np.arange(20) < 2, 0.0, 1.0)
    box = {"lower": lower, "upper": upper, "radius": "joint", "intercept": False}
    least = solve(Problem(layer.X[:, :2], epsilon=0.0, **box)).least_epsilon
    epsilon = 1.001 * float(least[0])
    assert epsilon < np.linalg.norm(layer.target_norms)
    solution = solve(Problem(layer.X, weights=weights, epsilon=epsilon, **box))
    assert solution.status is Status.OPTIMAL
    assert solution.certificate.objective == 0.0 and not solution.W[2:].any()


# Lies ------------------------------------------------------------------------------------------


def raw(problem, W, b=None, theta=None, stop=Status.OPTIMAL, ray=None):
    return RawSolution(W=W, b=b, theta=theta, stops=[stop] * problem.n_outputs, ray=ray)


def garbage(problem, rng):
    shape = (problem.n_samples, problem.n_outputs)
    return raw(problem, rng.standard_normal(problem.W.shape), theta=rng.standard_normal(shape))


def nothing(problem, rng):
    return raw(problem, np.zeros_like(problem.W))


def feasible_but_dense(problem, rng):
    return raw(problem, problem.W, problem.b)


def optimal_without_proof(problem, rng):
    best = solve(problem)
    return raw(problem, best.W, best.b)


def shrunken_optimum(problem, rng):
    best = solve(problem)
    return raw(problem, 0.98 * best.W, best.b, best.theta)


def not_a_number(problem, rng):
    best = solve(problem)
    worst = np.abs(best.W) == np.abs(best.W).max(axis=0)
    return raw(problem, np.where(worst, np.nan, best.W), best.b, best.theta)


def infinite(problem, rng):
    best = solve(problem)
    worst = np.abs(best.W) == np.abs(best.W).max(axis=0)
    return raw(problem, np.where(worst, np.inf, best.W), best.b, best.theta)


def infinite_dual(problem, rng):
    best = solve(problem)
    return raw(problem, problem.W, problem.b, np.full_like(best.theta, np.inf))


def huge_dual(problem, rng):
    best = solve(problem)
    return raw(problem, problem.W, problem.b, 1e300 * best.theta)


def ray_for_a_dual(problem, rng):
    """A dual point that every weight is orthogonal to bounds nothing, whatever its scale."""
    lower, upper = problem.box()
    theta = np.where(lower == upper, rng.standard_normal(lower.shape), 0.0)
    for j in range(problem.n_outputs):
        rows = lower[:, j] == upper[:, j]
        design = np.column_stack([problem.X[rows], np.ones(rows.sum())])
        for _ in range(3):
            theta[rows, j] -= design @ np.linalg.lstsq(design, theta[rows, j], rcond=None)[0]
    return raw(problem, problem.W, problem.b, theta)


def false_ray(problem, rng):
    ray = rng.standard_normal((problem.n_samples, problem.n_outputs))
    return raw(problem, problem.W, problem.b, stop=Status.INFEASIBLE, ray=ray)


LIES = [
    garbage, nothing, feasible_but_dense, optimal_without_proof, shrunken_optimum, not_a_number,
    infinite, infinite_dual, huge_dual, ray_for_a_dual, false_ray,
]  # fmt: skip


@pytest.fixture
def liar(monkeypatch):
    """Register a solver that returns what it is told to; call the result to tell it."""

    @dataclass(frozen=True)
    class Settings:
        tol_gap: float = 1e-6
        tol_feas: float = 1e-6

        def validate(self):
            pass

    module = types.ModuleType("nettrim_solver.solvers.liar")
    module.Settings = Settings
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def register(answer, convex=True):
        module.solve = lambda problem, settings, context: answer
        monkeypatch.setitem(SOLVERS, "liar", SolverInfo("liar", "says optimal", convex=convex))

    return register


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nothing_is_optimal_without_proof(liar, formulation, radius, lie):
    problem = make(formulation, radius)
    answer = lie(problem, np.random.default_rng(0))
    liar(answer)
    solution = solve(problem, solver="liar")
    assert set(solution.statuses) == {Status.UNPROVED}
    assert solution.least_epsilon is None
    with pytest.raises(SolverError):
        solve(problem, solver="liar", raise_on_failure=True)


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_a_heuristic_is_feasible_at_best(liar, formulation, radius):
    problem = make(formulation, radius)
    liar(feasible_but_dense(problem, None), convex=False)
    assert solve(problem, solver="liar", raise_on_failure=True).status is Status.FEASIBLE
    if not formulation.startswith("penalised"):
        liar(nothing(problem, None), convex=False)
        assert solve(problem, solver="liar").status is Status.UNPROVED


def test_negative_zeros_do_not_reach_the_user(liar):
    problem = make()
    liar(raw(problem, np.full(problem.W.shape, -0.0)))
    assert not np.signbit(solve(problem, solver="liar").W).any()


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_a_ray_bounds_nothing(formulation, radius):
    problem = make(formulation, radius)
    lie = ray_for_a_dual(problem, np.random.default_rng(0))
    judged = certify(problem, lie.W, lie.b, lie.theta)
    assert judged.bound <= TOLERANCE["proved"] * judged.objective
    assert np.all(judged.gaps >= 1.0 - TOLERANCE["proved"])


def test_a_proof_counts_whoever_brings_it(liar):
    problem = make()
    best = solve(problem)
    liar(raw(problem, best.W, best.b, best.theta, stop=Status.UNPROVED))
    assert solve(problem, solver="liar").status is Status.OPTIMAL


# Threads, forks, workers -----------------------------------------------------------------------


def test_two_threads_may_solve_at_once():
    script = (
        TINY
        + """
from concurrent.futures import ThreadPoolExecutor
problems = [problem.replace(tolerance=g, radius=r) for g in (0.1, 0.2, 0.3, 0.4)
            for r in ("joint", "per_output")]
with ThreadPoolExecutor(4) as pool:
    together = list(pool.map(solve, problems))
alone = [solve(p) for p in problems]
print(all(np.array_equal(a.W, b.W) and a.status is b.status is Status.OPTIMAL
          for a, b in zip(together, alone)))
"""
    )
    assert python("-c", script) == "True"


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("n_threads", [None, 2])
def test_solving_after_a_fork(tmp_path, method, n_threads):
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    script = tmp_path / "program.py"
    # The parent has solved before, so its BLAS and compiled loops are up when it forks.
    script.write_text(
        TINY
        + f"""
import multiprocessing
from nettrim_solver.solvers import admm
admm.SHARED_FROM = 0  # small, but shared by workers
def work(tolerance):
    return solve(problem.replace(tolerance=tolerance), n_threads={n_threads}).W
if __name__ == "__main__":
    expected = [work(g) for g in (0.1, 0.3)]
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        found = pool.map(work, (0.1, 0.3))
    print(all(np.array_equal(a, b) for a, b in zip(expected, found)))
"""
    )
    assert python(str(script)) == "True"


def test_problems_and_solutions_travel_to_joblib_workers():
    script = (
        TINY
        + """
from joblib import Parallel, delayed
problems = [problem.replace(tolerance=g) for g in (0.1, 0.3)]
found = Parallel(n_jobs=2)(delayed(solve)(p) for p in problems)
print(all(np.array_equal(s.W, solve(p).W) and s.status is Status.OPTIMAL
          for s, p in zip(found, problems)))
"""
    )
    assert python("-c", script) == "True"


# Bare installs ---------------------------------------------------------------------------------


def test_without_compilation():
    script = TINY + "s = solve(problem); print(s.status, s.certificate.objective.hex())"
    status, value = python("-c", script, NUMBA_DISABLE_JIT="1").split()
    assert status == "optimal"
    X, Y = tiny_layer()
    compiled = solve(Problem(X, Y, tolerance=0.2, radius="per_output"))
    assert float.fromhex(value) == pytest.approx(
        compiled.certificate.objective, rel=TOLERANCE["references_agree"]
    )


def tiny_layer():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 8))
    return X, np.maximum(X @ rng.standard_normal((8, 3)), 0)


def test_a_read_only_install_without_a_home(tmp_path):
    copied = tmp_path / "nettrim_solver"
    shutil.copytree(
        ROOT / "nettrim_solver", copied, ignore=shutil.ignore_patterns("__pycache__", "data")
    )
    # Plain files where numba wants directories: no cache can be made, whoever asks (root, too).
    for folder in (copied, copied / "solvers"):
        (folder / "__pycache__").write_text("")
    home = tmp_path / "home"
    home.write_text("")
    script = (
        TINY
        + """
import nettrim_solver
s = solve(problem)
print(nettrim_solver.__file__, s.status)
"""
    )
    where, status = python(
        "-c", script, cwd=tmp_path,
        PYTHONPATH=str(tmp_path), HOME=str(home), XDG_CACHE_HOME=str(home),
    ).split()  # fmt: skip
    assert Path(where).parent == copied
    assert status == "optimal"
    assert (copied / "solvers" / "__pycache__").is_file()


def test_the_cache_is_used_where_it_can_be(tmp_path):
    python("-c", TINY + "solve(problem)", NUMBA_CACHE_DIR=str(tmp_path))
    assert list(tmp_path.rglob("kernels.*.nbi"))

"""Every unusable argument gives one readable error that names it, what it was, what it must be."""

import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp

from nettrim_solver import Problem, Status, activations, solve
from nettrim_solver.exceptions import (
    InfeasibleError,
    MissingDependencyError,
    NettrimError,
    ProblemError,
    ProblemFileError,
    SettingsError,
    UnsupportedError,
)

RNG = np.random.default_rng(7)
X = RNG.standard_normal((6, 4))
W = RNG.standard_normal((4, 3))
Y = np.maximum(X @ W, 0.0)
GOOD = {"X": X, "Y": Y, "epsilon": 0.5}
BOX = {"Y": None, "lower": Y, "upper": Y}


def spoilt(array, value):
    array = np.array(array, dtype=np.result_type(array, type(value)))
    array.flat[5] = value
    return array


class Case(NamedTuple):
    """Arguments, the argument at fault, what the message says of it, and what must be."""

    changes: dict[str, Any]
    argument: str
    found: str
    required: str


PROBLEM_CASES = {
    # Dimensions
    "X vector": Case({"X": X[:, 0]}, "X", "has 1", "2 dimensions"),
    "X scalar": Case({"X": 3.0}, "X", "has 0", "2 dimensions"),
    "X 3-D": Case({"X": X[None]}, "X", "has 3", "2 dimensions"),
    "X sparse 1-D": Case({"X": sp.coo_array(X[:, 0])}, "X", "has 1", "2 dimensions"),
    "Y 3-D": Case({"Y": Y[None]}, "Y", "has 3", "2 dimensions"),
    "W 3-D": Case({"W": W[None]}, "W", "has 3", "2 dimensions"),
    "lower scalar": Case(BOX | {"lower": 0.0}, "lower", "()", "non-empty matrix"),
    # Shapes that disagree
    "rows of Y": Case({"Y": Y[:5]}, "Y", "5 samples", "X has 6"),
    "rows of W": Case({"W": W[:3]}, "W", "3 inputs", "X has 4"),
    "columns of W": Case({"W": W[:, :2]}, "W", "2 outputs", "Y has 3"),
    "W is transposed": Case({"W": W.T}, "W", "3 inputs", "X has 4"),
    "b long": Case({"b": np.zeros(4)}, "b", "(4,)", "(3,)"),
    "b matrix": Case({"b": np.zeros((3, 1))}, "b", "(3, 1)", "(3,)"),
    "weights long": Case({"weights": np.ones(5)}, "weights", "(5,)", "(4,) or (4, 3)"),
    "weights turned": Case({"weights": np.ones((3, 4))}, "weights", "(3, 4)", "(4,) or (4, 3)"),
    "Z shape": Case({"Z": Y[:, :2]}, "Z", "(6, 2)", "(6, 3)"),
    "epsilon count": Case(
        {"epsilon": [1.0, 2.0], "radius": "per_output"}, "epsilon", "(2,)", "one number or"
    ),
    "epsilon per output, joint": Case(
        {"epsilon": [1.0, 2.0, 3.0]}, "epsilon", "(3,)", "one number for radius='joint'"
    ),
    "rows of lower": Case(BOX | {"lower": Y[:5], "upper": Y[:5]}, "lower", "5 samples", "X has 6"),
    "lower and upper": Case(BOX | {"upper": Y[:, :2]}, "lower", "(6, 3)", "(6, 2)"),
    "slopes of PReLU": Case(
        {"activation": activations.PReLU([0.1, 0.2])}, "slopes", "(2,)", "(3,)"
    ),
    # NaN and infinities
    "X NaN": Case({"X": spoilt(X, np.nan)}, "X", "1 NaN", "finite"),
    "X inf": Case({"X": spoilt(X, np.inf)}, "X", "1 NaN or infinite", "finite"),
    "X sparse NaN": Case({"X": sp.csr_array(spoilt(X, np.nan))}, "X", "1 NaN", "finite"),
    "X beyond float64": Case({"X": [[10**400] * 4] * 6}, "X", "object", "real numbers"),
    "Y NaN": Case({"Y": spoilt(Y, np.nan)}, "Y", "1 NaN", "finite"),
    "Y inf": Case({"Y": spoilt(Y, np.inf)}, "Y", "1 NaN or infinite", "finite"),
    "W NaN": Case({"W": spoilt(W, np.nan)}, "W", "1 NaN", "finite"),
    "b inf": Case({"b": [0, np.inf, 0]}, "b", "infinite", "finite"),
    "weights NaN": Case({"weights": [1, np.nan, 1, 1]}, "weights", "nan", "finite and >= 0"),
    "lower NaN": Case(BOX | {"lower": spoilt(Y, np.nan)}, "lower", "holds 1", "not hold NaN"),
    # Levels
    "epsilon negative": Case({"epsilon": -0.1}, "epsilon", "-0.1", ">= 0"),
    "epsilon NaN": Case({"epsilon": np.nan}, "epsilon", "nan", "finite"),
    "epsilon inf": Case({"epsilon": np.inf}, "epsilon", "inf", "finite"),
    "epsilon text": Case({"epsilon": "small"}, "epsilon", "<U5", "real numbers"),
    "epsilon complex": Case({"epsilon": 1j}, "epsilon", "complex128", "real numbers"),
    "epsilon empty": Case({"epsilon": []}, "epsilon", "[]", ">= 0"),
    "one epsilon negative": Case(
        {"epsilon": [0.1, -0.2, 0.3], "radius": "per_output"}, "epsilon", "-0.2", ">= 0"
    ),
    "tolerance negative": Case({"epsilon": None, "tolerance": -1.0}, "tolerance", "-1", ">= 0"),
    "tolerance NaN": Case({"epsilon": None, "tolerance": np.nan}, "tolerance", "nan", "finite"),
    "tolerance per output": Case(
        {"epsilon": None, "tolerance": [0.1, 0.1, 0.1]}, "tolerance", "(3,)", "one number"
    ),
    "weights negative": Case({"weights": [1, -2, 1, 1]}, "weights", "-2", ">= 0"),
    "lambda_ zero": Case(
        {"epsilon": None, "formulation": "penalised", "lambda_": 0.0}, "lambda_", "0", "positive"
    ),
    # Which budget
    "epsilon and tolerance": Case({"tolerance": 0.1}, "epsilon", "both", "epsilon or tolerance"),
    "lambda_ of a ball": Case({"lambda_": 1.0}, "lambda_", "'pooled'", "penalised formulations"),
    "epsilon of a penalty": Case(
        {"formulation": "penalised"}, "epsilon", "'penalised'", "takes lambda_"
    ),
    "no lambda_": Case(
        {"formulation": "penalised_strict", "epsilon": None},
        "lambda_", "'penalised_strict'", "must be given",
    ),
    # The box
    "lower > upper": Case(
        BOX | {"lower": spoilt(Y, 9.0)}, "lower", "1 entries", "<= upper"
    ),
    "lower +inf": Case(
        BOX | {"lower": spoilt(Y, np.inf), "upper": spoilt(Y, np.inf)}, "lower", "1 entries", "+inf"
    ),
    "lower alone": Case({"Y": None, "lower": Y}, "upper", "one is missing", "together"),
    "box and Y": Case({"lower": Y, "upper": Y}, "Y", "both", "either Y or the box"),
    "neither box nor Y": Case({"Y": None}, "Y", "both", "either Y or the box"),
    "Z of a box": Case(BOX | {"Z": Y[:, :1]}, "Z", f"{(len(Y), 1)}", "shape of Y"),
    # Empty
    "X no rows": Case({"X": X[:0], "Y": Y[:0]}, "X", "(0, 4)", "not be empty"),
    "X no columns": Case({"X": X[:, :0]}, "X", "(6, 0)", "not be empty"),
    "Y no columns": Case({"Y": Y[:, :0]}, "Y", "(6, 0)", "not be empty"),
    "box no columns": Case(
        BOX | {"lower": Y[:, :0], "upper": Y[:, :0]}, "lower", "(6, 0)", "non-empty"
    ),
    # Kinds of data
    "X object": Case({"X": X.astype(object)}, "X", "object", "real numbers"),
    "X complex": Case({"X": X.astype(complex)}, "X", "complex128", "real numbers"),
    "X sparse complex": Case(
        {"X": sp.csr_array(X.astype(complex))}, "X", "complex128", "real numbers"
    ),
    "X text": Case({"X": np.full((6, 4), "1.0")}, "X", "<U3", "real numbers"),
    "X dates": Case({"X": np.zeros((6, 4), "M8[s]")}, "X", "datetime64", "real numbers"),
    "X ragged": Case({"X": [[1.0, 2.0], [1.0]]}, "X", "ragged", "array of numbers"),
    "X None": Case({"X": None}, "X", "object", "real numbers"),
    "Y object": Case({"Y": Y.astype(object)}, "Y", "object", "real numbers"),
    "Y complex": Case({"Y": Y + 0j}, "Y", "complex128", "real numbers"),
    "Y sparse": Case({"Y": sp.csr_array(Y)}, "Y", "scipy.sparse", "dense array"),
    "weights object": Case(
        {"weights": np.ones(4, dtype=object)}, "weights", "object", "real numbers"
    ),
    # Activation and range
    "activation name": Case({"activation": "rleu"}, "activation", "'rleu'", "'relu'"),
    "activation class": Case(
        {"activation": activations.ReLU}, "activation", "ReLU", "an Activation or one of"
    ),
    "Y below relu": Case({"Y": spoilt(Y, -0.5)}, "Y", "[-0.5,", "range [0, inf] of 'relu'"),
    "Y above relu6": Case(
        {"Y": spoilt(Y, 6.5), "activation": "relu6"}, "Y", "6.5]", "[0, 6] of 'relu6'"
    ),
    "Y above tanh": Case(
        {"Y": spoilt(Y / 99, 1.5), "activation": "tanh", "Z": Y}, "Y", "1.5]", "[-1, 1] of 'tanh'"
    ),
    "no stored Z": Case(
        {"Y": np.tanh(Y), "activation": "tanh"}, "Z", "no stable inverse", "give Z"
    ),
    "Z of another layer": Case(
        {"Y": np.tanh(Y), "activation": "tanh", "Z": Y + 1.0}, "Z", "is 0.", "reproduce Y"
    ),
    # Intercepts
    "b without intercept": Case(
        {"b": np.zeros(3), "intercept": False}, "b", "intercept=False", "intercept=True"
    ),
    "intercept is an array": Case(
        {"intercept": np.zeros(3)}, "intercept", "array", "True or False"
    ),
    # Choices
    "formulation": Case({"formulation": "lasso"}, "formulation", "'lasso'", "'pooled'"),
    "formulation array": Case(
        {"formulation": np.array(["pooled"] * 2)}, "formulation", "array", "'pooled'"
    ),
    "radius": Case({"radius": "both"}, "radius", "'both'", "'per_output'"),
}  # fmt: skip


def check(message, case):
    for part in (case.argument, case.found, case.required):
        assert part in message, f"{part!r} is not in: {message}"
    assert len(message) < 400 and "\n" not in message


@pytest.mark.parametrize("case", PROBLEM_CASES.values(), ids=PROBLEM_CASES)
def test_problem(case):
    with pytest.raises(ProblemError) as caught:
        Problem(**(GOOD | case.changes))
    assert type(caught.value) is ProblemError and isinstance(caught.value, ValueError)
    check(str(caught.value), case)


@pytest.mark.parametrize("changes", [{}, BOX, {"W": W, "b": np.zeros(3)}])
def test_the_table_starts_from_a_good_problem(changes):
    assert Problem(**(GOOD | changes)).n_outputs == 3


ACTIVATION_CASES = {
    "negative_slope": (lambda: activations.LeakyReLU(0.0), "0.0", "positive"),
    "slopes": (lambda: activations.PReLU([0.1, -0.2]), "-0.2", "positive"),
    "slopes shape": (lambda: activations.PReLU([[0.1]]), "(1, 1)", "(n_outputs,)"),
    "slopes NaN": (lambda: activations.PReLU(np.nan), "()", "finite"),
    "slopes text": (lambda: activations.PReLU("steep"), "'steep'", "positive numbers"),
    "ceiling": (lambda: activations.ClippedReLU(-6), "-6", "positive"),
    "ceiling inf": (lambda: activations.ClippedReLU(np.inf), "inf", "finite"),
    "alpha": (lambda: activations.ELU("a"), "'a'", "finite number"),
    "slope": (lambda: activations.HardSigmoid(slope=None), "None", "finite number"),
    "offset": (lambda: activations.HardSigmoid(offset=np.nan), "nan", "finite number"),
}


@pytest.mark.parametrize("name", ACTIVATION_CASES)
def test_activation_parameters(name):
    make, found, required = ACTIVATION_CASES[name]
    with pytest.raises(ProblemError) as caught:
        make()
    check(str(caught.value), Case({}, name.split()[0], found, required))


REPLACE_CASES = {
    "unknown": Case({"eps": 0.1}, "replace()", "['eps']", "'epsilon'"),
    "two budgets": Case({"epsilon": 1.0, "tolerance": 1.0}, "epsilon", "both", "or tolerance"),
    "new X": Case({"X": X[:5]}, "Y", "6 samples", "X has 5"),
    "negative": Case({"epsilon": -1.0}, "epsilon", "-1", ">= 0"),
}


@pytest.mark.parametrize("case", REPLACE_CASES.values(), ids=REPLACE_CASES)
def test_replace(case):
    problem = Problem(**GOOD)
    with pytest.raises(ProblemError) as caught:
        problem.replace(**case.changes)
    check(str(caught.value), case)


class SolveCase(NamedTuple):
    """As Case, with the arguments of solve() and the type of the error."""

    changes: dict[str, Any]
    error: type[NettrimError]
    argument: str
    found: str
    required: str


SOLVE_CASES = {
    "solver": SolveCase({"solver": "adm"}, SettingsError, "solver", "'adm'", "'admm'"),
    "solver list": SolveCase({"solver": ["admm"]}, SettingsError, "solver", "['admm']", "one of"),
    "setting": SolveCase(
        {"iterations": 9}, SettingsError, "'iterations'", "unknown setting", "'max_iter'"
    ),
    "setting of another solver": SolveCase(
        {"solver": "cvxpy", "relaxation": 1.5},
        SettingsError, "'relaxation'", "unknown setting", "it knows",
    ),
    "tol_gap zero": SolveCase({"tol_gap": 0}, SettingsError, "tol_gap", "0", "(0, 1)"),
    "tol_gap NaN": SolveCase({"tol_gap": np.nan}, SettingsError, "tol_gap", "nan", "(0, 1)"),
    "tol_gap text": SolveCase({"tol_gap": "low"}, SettingsError, "tol_gap", "'low'", "(0, 1)"),
    "tol_gap True": SolveCase({"tol_gap": True}, SettingsError, "tol_gap", "True", "(0, 1)"),
    "tol_feas": SolveCase({"tol_feas": -1.0}, SettingsError, "tol_feas", "-1.0", "(0, 1)"),
    "tol_feas array": SolveCase(
        {"tol_feas": np.ones(2)}, SettingsError, "tol_feas", "array", "(0, 1)"
    ),
    "n_threads": SolveCase({"n_threads": 0}, SettingsError, "n_threads", "0", "integer >= 1"),
    "n_threads float": SolveCase(
        {"n_threads": 1.5}, SettingsError, "n_threads", "1.5", "integer >= 1"
    ),
    "callback": SolveCase({"callback": 3}, SettingsError, "callback", "3", "callable"),
    "warm_start array": SolveCase(
        {"warm_start": W}, SettingsError, "warm_start", "ndarray", "Solution"
    ),
    "max_iter zero": SolveCase({"max_iter": 0}, SettingsError, "max_iter", "0", ">= 1"),
    "max_iter float": SolveCase({"max_iter": 2.5}, SettingsError, "max_iter", "2.5", "integer"),
    "max_iter text": SolveCase({"max_iter": "9"}, SettingsError, "max_iter", "'9'", "integer"),
    "time_limit": SolveCase({"time_limit": -1.0}, SettingsError, "time_limit", "-1", "(0, inf)"),
    "time_limit NaN": SolveCase(
        {"time_limit": np.nan}, SettingsError, "time_limit", "nan", "(0, inf)"
    ),
    "time_limit text": SolveCase(
        {"time_limit": "1 h"}, SettingsError, "time_limit", "'1 h'", "(0, inf)"
    ),
    "time_limit of a reference": SolveCase(
        {"solver": "cvxpy", "time_limit": 0}, SettingsError, "time_limit", "0", "(0, inf)"
    ),
    "rho": SolveCase({"rho": 0.0}, SettingsError, "rho", "0.0", "(0, inf)"),
    "relaxation": SolveCase({"relaxation": 2.0}, SettingsError, "relaxation", "2.0", "[1, 2)"),
    "dtype": SolveCase({"dtype": "float16"}, SettingsError, "dtype", "'float16'", "'float32'"),
    "check_interval": SolveCase(
        {"check_interval": True}, SettingsError, "check_interval", "True", "integer >= 1"
    ),
    "memory_limit": SolveCase(
        {"memory_limit": "1 GB"}, SettingsError, "memory_limit", "'1 GB'", "integer >= 1"
    ),
    "not a problem": SolveCase({"problem": X}, ProblemError, "problem", "ndarray", "a Problem"),
    "no radius": SolveCase(
        {"problem": Problem(X, Y)}, ProblemError, "radius", "'admm'", "epsilon or tolerance"
    ),
    "unsupported formulation": SolveCase(
        {"solver": "admm-published"},
        UnsupportedError, "formulation", "'pooled'", "solvers that do: ['admm'",
    ),
    "unsupported sparse X": SolveCase(
        {
            "solver": "admm-published",
            "problem": Problem(sp.csr_array(X), Y, epsilon=1.0, formulation="strict"),
        },
        UnsupportedError, "X", "'admm-published'", "solvers that do: ['admm'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SOLVE_CASES.values(), ids=SOLVE_CASES)
def test_solve(case):
    arguments = {"problem": Problem(**GOOD)} | case.changes
    with pytest.raises(case.error) as caught:
        solve(**arguments)
    assert type(caught.value) is case.error
    check(str(caught.value), case)


def test_warm_start_of_another_shape():
    warm_start = solve(Problem(**(GOOD | {"Y": Y[:, :2]})))
    with pytest.raises(ProblemError) as caught:
        solve(Problem(**GOOD), warm_start=warm_start)
    check(str(caught.value), Case({}, "warm_start", "(4, 2)", "(4, 3)"))


@pytest.mark.parametrize(("solver", "package"), [("cvxpy", "cvxpy"), ("osqp", "osqp")])
def test_missing_package(monkeypatch, solver, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *args: None)
    with pytest.raises(MissingDependencyError) as caught:
        solve(Problem(**(GOOD | {"formulation": "strict"})), solver=solver)
    check(str(caught.value), Case({}, f"solver '{solver}'", package, "nettrim_solver[reference]"))


def test_nothing_is_solved_before_the_checks(monkeypatch):
    import nettrim_solver.solvers.admm as admm

    def never(*args):
        raise AssertionError("work began before the checks")

    monkeypatch.setattr(admm, "solve", never)
    for case in SOLVE_CASES.values():
        with pytest.raises(case.error):
            solve(**({"problem": Problem(**GOOD)} | case.changes))


FILE_CASES = {
    "missing": (None, "there is no file"),
    "empty": (b"", "not an .npz archive"),
    "text": (b"X,Y\n1,2\n", "not an .npz archive"),
    "pickle": (pickle.dumps({"X": 1}), "pickles are refused"),
    "zip of nothing": (b"PK\x05\x06" + bytes(18), "not a problem"),
}


@pytest.mark.parametrize("name", FILE_CASES)
def test_files(tmp_path, name):
    content, required = FILE_CASES[name]
    path = tmp_path / "problem.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProblemFileError) as caught:
        Problem.load(path)
    check(str(caught.value), Case({}, str(path), "", required))


# Strange, but legal: these must solve with a proof.
RANKLESS = RNG.standard_normal((6, 2)) @ RNG.standard_normal((2, 4))
LEGAL = {
    "integers": {
        "X": np.arange(24).reshape(6, 4) % 5,
        "Y": np.arange(18).reshape(6, 3) % 4,
        "epsilon": 3.0,
    },
    "zero column": {"X": X * [1, 0, 1, 1]},
    "all zero X": {"X": np.zeros((6, 4)), "epsilon": 100.0},
    "dead output": {"Y": Y * [1, 0, 1]},
    "all outputs dead": {"Y": np.zeros((6, 3))},
    "duplicate columns": {"X": X[:, [0, 1, 1, 0]], "epsilon": 4.0},
    "constant feature": {"X": np.column_stack([X[:, :3], np.full(6, 2.5)]), "epsilon": 1.5},
    "rank below N": {"X": RANKLESS, "Y": np.maximum(RANKLESS @ W, 0.0)},
    "fewer samples than inputs": {"X": X[:2], "Y": Y[:2]},
    "one sample": {"X": X[:1], "Y": Y[:1], "intercept": False},
    "epsilon zero": {"epsilon": 0.0},
    "huge epsilon": {"epsilon": 1e6},
    "unpenalised input": {"weights": [1, 0, 1, 1]},
    "sparse X": {"X": sp.csr_array(np.where(X > 0, X, 0.0)), "epsilon": 3.0},
    "vector Y": {"Y": Y[:, 0]},
}


@pytest.mark.parametrize("radius", ["joint", "per_output"])
@pytest.mark.parametrize("changes", LEGAL.values(), ids=LEGAL)
def test_strange_but_legal_input_is_solved_with_a_proof(changes, radius):
    solution = solve(Problem(**(GOOD | changes), radius=radius))
    assert solution.status is Status.OPTIMAL, solution.explain()


def test_an_infeasible_radius_is_a_status_and_raises_only_if_asked():
    # Two equal inputs with different targets: no weights come nearer than sqrt(2).
    problem = Problem(np.ones((2, 1)), [[1.0], [3.0]], epsilon=1.0, activation="identity")
    solution = solve(problem)
    assert solution.status is Status.INFEASIBLE
    np.testing.assert_allclose(solution.least_epsilon, np.sqrt(2.0), rtol=1e-6)
    with pytest.raises(InfeasibleError, match=r"Least reachable epsilon: 1\.4142") as caught:
        solve(problem, raise_on_failure=True)
    assert caught.value.solution.status is Status.INFEASIBLE

"""The command line: exit codes, files, one-line errors."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nettrim_solver
from nettrim_solver import Problem, Status, certify, solve
from nettrim_solver.cli import main
from nettrim_solver.cli.solve import EXAMPLE, solution_arrays
from tests.tolerances import TOLERANCE

SOLVE = sys.modules["nettrim_solver.solve"]
COMMANDS = ([], *([name] for name in "demo solve prune recipes inspect compare".split()))


@pytest.fixture
def problem_file(tmp_path, layer):
    path = tmp_path / "problem.npz"
    Problem(layer.X, layer.Y, layer.W, layer.b, tolerance=0.2).save(path)
    return path


def process(*words, environment=None, **options):
    root = str(Path(nettrim_solver.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *words], env=os.environ | {"PYTHONPATH": paths} | (environment or {}),
        capture_output=True, text=True, **options,
    )  # fmt: skip


def one_error(captured):
    """Return the message, which must be all there is on stderr, and on stdout nothing."""
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("nettrim: error: ")
    return lines[0]


def strict_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_solve_proves_and_writes_what_the_judge_confirms(problem_file, tmp_path, capsys):
    output = tmp_path / "solution.npz"
    assert main(["solve", str(problem_file), "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert "optimal" in captured.out and str(output) in captured.out
    assert captured.err == "" and "\x1b" not in captured.out
    problem = Problem.load(problem_file)
    with np.load(output, allow_pickle=False) as file:
        arrays = dict(file)
    assert set(arrays) == {"W", "b", "theta", "status"}
    status = strict_json(str(arrays["status"]))
    judged = certify(problem, arrays["W"], arrays["b"], arrays["theta"])
    assert status["status"] == "optimal"
    assert status["nnz"] == np.count_nonzero(arrays["W"])
    for name in ("gap", "violation", "objective", "bound"):
        assert status[name] == getattr(judged, name)
    assert abs(judged.gap) <= TOLERANCE["proved"] and judged.violation <= TOLERANCE["proved"]


def test_json_is_one_line_and_all_there_is(problem_file, capsys):
    assert main(["solve", str(problem_file), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    status = strict_json(captured.out)
    assert status["status"] == "optimal" and len(status["statuses"]) == 4
    assert status["solver"] == "admm" and status["least_epsilon"] is None


def test_quiet_prints_nothing(problem_file, capsys):
    assert main(["solve", str(problem_file), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_no_theta_and_no_intercept_leave_no_array(layer):
    problem = Problem(layer.X, layer.Y, layer.W, tolerance=0.2, intercept=False)
    solution = dataclasses.replace(solve(problem), theta=None)
    assert set(solution_arrays(problem, solution)) == {"W", "status"}


def test_an_answer_without_proof_is_1(problem_file, tmp_path, capsys, monkeypatch):
    def unproved(*args, **options):
        return dataclasses.replace(solve(*args, **options), status=Status.MAX_ITERATIONS)

    monkeypatch.setattr(SOLVE, "solve", unproved)
    output = tmp_path / "solution.npz"
    assert main(["solve", str(problem_file), "-o", str(output)]) == 1
    assert Status.MAX_ITERATIONS.remedy in capsys.readouterr().out
    with np.load(output) as file:
        assert strict_json(str(file["status"]))["status"] == "max_iterations"


def test_infeasible_is_1_with_the_least_radius(tmp_path, capsys):
    """One weight cannot be 1 and 3: the nearest is 2, at a distance of sqrt(2)."""
    path, target = tmp_path / "infeasible.npz", np.array([1.0, 3.0])
    Problem(np.ones((2, 1)), lower=target, upper=target, epsilon=0.1, intercept=False).save(path)
    assert main(["solve", str(path), "--json"]) == 1
    status = strict_json(capsys.readouterr().out)
    assert status["status"] == "infeasible"
    assert status["least_epsilon"] == pytest.approx(np.sqrt(2), rel=TOLERANCE["proved"])


def test_settings_reach_the_solver(problem_file, monkeypatch):
    seen = {}

    def spy(problem, solver, **options):
        seen.update(options, solver=solver)
        return solve(problem)

    monkeypatch.setattr(SOLVE, "solve", spy)
    words = "--solver osqp --max-iter 7 --time-limit 2.5 --n-threads 1 --tol-gap 1e-4".split()
    assert main(["solve", str(problem_file), "--quiet", *words]) == 0
    del seen["callback"]
    assert seen == {
        "solver": "osqp", "max_iter": 7, "time_limit": 2.5, "n_threads": 1, "tol_gap": 1e-4
    }  # fmt: skip


def missing(path):
    return "no file"


def corrupt(path):
    path.write_bytes(b"PK\x03\x04 not really")
    return "not a problem"


def pickled(path):
    np.savez(path, X=np.array([{}], dtype=object))
    return "not a problem"


def truncated(path):
    Problem(np.eye(9), np.eye(9), epsilon=1.0).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    return "not a problem"


def folder(path):
    path.mkdir()
    return "cannot be read"


def without_radius(path):
    Problem(np.eye(2), np.eye(2)).save(path)
    return "radius"


@pytest.mark.parametrize("make", [missing, corrupt, pickled, truncated, folder, without_radius])
def test_bad_problem_file_is_2(make, tmp_path, capsys):
    path = tmp_path / "bad.npz"
    word = make(path)
    assert main(["solve", str(path)]) == 2
    assert word in one_error(capsys.readouterr())


@pytest.mark.parametrize("where", ["missing/solution.npz", "problem.npz/solution.npz", "."])
def test_unwritable_output_is_2_before_any_work(where, problem_file, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(SOLVE, "solve")
    monkeypatch.setattr(SOLVE, "solve", lambda *a, **k: pytest.fail("solved"), raising=False)
    assert main(["solve", str(problem_file), "-o", str(tmp_path / where)]) == 2
    assert "cannot write" in one_error(capsys.readouterr())


def test_the_problem_is_never_overwritten(problem_file, capsys):
    content = problem_file.read_bytes()
    assert main(["solve", str(problem_file), "-o", str(problem_file)]) == 2
    assert "read as well" in one_error(capsys.readouterr())
    assert problem_file.read_bytes() == content


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND"),
        (["prune"], "prune"),
        (["solve"], "problem"),
        (["solve", "FILE", "--solver", "simplex"], "simplex"),
        (["solve", "FILE", "--max-iter", "many"], "--max-iter"),
        (["solve", "FILE", "--max-iter", "-1"], "max_iter"),
        (["solve", "FILE", "--time-limit", "-1"], "time_limit"),
        (["solve", "FILE", "--n-threads", "0"], "n_threads"),
        (["solve", "FILE", "--tol-gap", "2"], "tol_gap"),
        (["solve", "FILE", "--frobnicate"], "--frobnicate (see nettrim solve --help)"),
        (
            ["solve", "FILE", "--max-itre=3"],
            "did you mean '--max-iter'? (see nettrim solve --help)",
        ),
        (["solve", "FILE", "another"], "'another' (see nettrim solve --help)"),
        (["recipes", "bast"], "best, fast, net-trim"),
    ],
)
def test_bad_usage_is_2(words, message, problem_file, capsys):
    assert main([str(problem_file) if word == "FILE" else word for word in words]) == 2
    assert message in one_error(capsys.readouterr())


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["solve", str(tmp_path / "missing.npz"), "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("nettrim: error: ")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ZeroDivisionError("by\nzero"), 1, "ZeroDivisionError: by zero"),
        (MemoryError("8 GB"), 1, "out of memory: 8 GB"),
        (nettrim_solver.exceptions.SolverError("backend gone"), 1, "backend gone"),
        (OSError(28, "No space left on device", "out.npz"), 2, "out.npz: No space left"),
    ],
)
def test_failures_are_one_line(error, code, message, problem_file, capsys, monkeypatch):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(SOLVE, "solve", fail)
    assert main(["solve", str(problem_file)]) == code
    assert message in one_error(capsys.readouterr())


def test_interrupt_is_130(problem_file, capsys, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(SOLVE, "solve", interrupt)
    assert main(["solve", str(problem_file)]) == 130
    assert capsys.readouterr().err == "nettrim: interrupted\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert re.search("^examples?:$", text, re.MULTILINE) and " ".join(["nettrim", *command]) in text
    if command:
        assert {"--json", "--quiet", "--debug"} <= set(re.findall(r"--[a-z]+", text))


def test_example_of_the_help_text_works(tmp_path):
    lines = EXAMPLE.partition("example:\n")[2].partition("\n\n")[0]
    script = lines.replace("python", f"'{sys.executable}'", 1).replace(
        "nettrim solve", f"'{sys.executable}' -m nettrim_solver solve"
    )
    answer = process(
        "-c", "import subprocess, sys; subprocess.run(['sh', '-ec', sys.argv[1]], check=True)",
        script, cwd=tmp_path,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "solution.npz").exists()


def test_help_and_version_load_nothing_heavy():
    script = (
        "import sys\n"
        "from nettrim_solver.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numba', 'rich', 'cvxpy', 'osqp', 'clarabel', 'matplotlib', 'sklearn'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    answer = process("-c", script)
    assert answer.returncode == 0, answer.stderr
    answer = process("-m", "nettrim_solver", "--version")
    assert answer.stdout == f"nettrim_solver {nettrim_solver.__version__}\n"


def test_a_closed_pipe_is_no_traceback(problem_file):
    """The reader of stdout is gone before the first line."""
    read, write = os.pipe()
    os.close(read)
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "nettrim_solver", "solve", str(problem_file)],
            cwd=Path(nettrim_solver.__file__).parent.parent,
            stdout=write, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        os.close(write)
    assert (answer.returncode, answer.stderr) == (1, "")


def test_a_name_that_the_terminal_cannot_show_costs_nothing(tmp_path):
    """An ASCII terminal, and a file name that it lacks: the answer is written and told of."""
    output = tmp_path / "b\xe9ta.npz"
    Problem(np.eye(3), np.ones((3, 2)), epsilon=1.0).save(tmp_path / "p.npz")
    answer = process(
        "-m", "nettrim_solver", "solve", str(tmp_path / "p.npz"), "-o", str(output),
        environment={"PYTHONIOENCODING": "ascii"}, cwd=tmp_path,
    )  # fmt: skip
    assert answer.returncode == 0 and answer.stderr == "" and output.exists()
    assert "b\\xe9ta.npz" in answer.stdout

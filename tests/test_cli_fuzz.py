"""Damaged calibration and recipe files: an answer, or exit code 2 and one line."""

import io

import numpy as np
import pytest

from nettrim_solver.cli import main

RECIPE = b"""# how a network is pruned
version = 1
steps = ["magnitude", {step = "refit", damping = 0.1}]
mode = "cascade"
skip = ["W7*", "W0"]
gamma = 1.0
max_rows = 100
passes = 0
allocation = "uniform"
[layers.W1]
sparsity = 0.25
skip = false
steps = "wanda"
"""


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 4))
SEEDS = {
    "inputs.npy": npy(X),
    "inputs.npz": npz(X=X, y=np.arange(12) % 3),
    "recipe.toml": RECIPE,
}


def mutations(content, n, seed):
    """Yield n damaged copies: bytes changed, cut, doubled, swapped for others of the file."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        data = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            if not data:
                break
            at, end = sorted(rng.integers(0, len(data), 2))
            match rng.integers(0, 6):
                case 0:
                    data[at] = rng.integers(256)
                case 1:
                    data[at] ^= 1 << rng.integers(8)
                case 2:
                    del data[at:]
                case 3:
                    del data[at : at + rng.integers(1, 9)]
                case 4:
                    data[at:at] = data[at : min(end, at + 30)]
                case 5:
                    data[at : at + 1] = rng.choice(list(b'[]{}"=.,\n#-0e')).tobytes()[:1]
        yield bytes(data)


def check(name, n, seed, folder, capsys):
    """Run every mutation up to the plan; count the outcomes."""
    codes = {0: 0, 2: 0}
    for content in mutations(SEEDS[name], n, seed):
        (folder / name).write_bytes(content)
        words = ["--tolerance", "0.1", *(["--recipe", name] if name == "recipe.toml" else ())]
        inputs = "inputs.npy" if name == "recipe.toml" else name
        validation = ["--validation", name] if name == "inputs.npz" else []
        code = main(["prune", "network.npz", "--calibration", inputs, *validation, *words,
                     "--dry-run", "--quiet"])  # fmt: skip
        printed = capsys.readouterr()
        assert code in codes, (content, printed.err)
        assert printed.out == "" and printed.err.count("\n") == (code == 2), (content, printed.err)
        codes[code] += 1
    return codes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A plan measures the machine; here only what comes before it counts.
    monkeypatch.setattr("nettrim_solver.network.planning.measured_rate", lambda: 1e9)
    np.savez("network.npz", W0=RNG.standard_normal((4, 5)), b0=np.zeros(5),
             W1=RNG.standard_normal((5, 3)), b1=np.zeros(3))  # fmt: skip
    np.save("inputs.npy", X)
    return tmp_path


@pytest.mark.parametrize("name", SEEDS)
def test_damaged_files_are_one_line(name, folder, capsys):
    codes = check(name, 150, 1, folder, capsys)
    assert codes[2] > 30, codes


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_many_damaged_files_are_one_line(name, folder, capsys):
    codes = check(name, 4000, 2, folder, capsys)
    assert codes[2] > 1000, codes

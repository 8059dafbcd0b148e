"""Problem files: exact round trips, refusal of everything else, and all-or-nothing writes."""

import io
import json
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp

from nettrim_solver import Problem, activations
from nettrim_solver.activations import Activation
from nettrim_solver.exceptions import ProblemError, ProblemFileError
from nettrim_solver.problem_file import load_arrays, save_arrays

RNG = np.random.default_rng(11)
X = RNG.standard_normal((9, 4))
W = RNG.standard_normal((4, 3))
b = RNG.standard_normal(3)
Z = X @ W + b
Y = np.maximum(Z, 0.0)
SPARSE = sp.random_array((9, 4), density=0.4, rng=np.random.default_rng(1), format="csc")

KINDS = {
    "relu": lambda: Problem(X, Y, W, b, epsilon=0.1),
    "float32": lambda: Problem(X.astype(np.float32), Y.astype(np.float32), tolerance=0.1),
    "sparse": lambda: Problem(SPARSE, Y, epsilon=0.1),
    "sparse float32": lambda: Problem(SPARSE.astype(np.float32), Y, epsilon=0.1),
    "per output": lambda: Problem(X, Y, epsilon=[0.1, 0.2, 0.3], radius="per_output"),
    "per output, one level": lambda: Problem(X, Y, epsilon=0.1, radius="per_output"),
    "tolerance": lambda: Problem(X, Y, tolerance=0.3, radius="per_output"),
    "no budget": lambda: Problem(X, Y, W),
    "strict": lambda: Problem(X, Y, epsilon=0.1, formulation="strict", intercept=False),
    "penalised": lambda: Problem(X, Y, lambda_=0.1, formulation="penalised"),
    "penalised strict": lambda: Problem(
        X, Y, lambda_=[0.1, 0.2, 0.3], formulation="penalised_strict"
    ),
    "weights": lambda: Problem(X, Y, weights=np.arange(12).reshape(4, 3), epsilon=0.1),
    "box": lambda: Problem(X, lower=Z - 1, upper=np.where(Z > 0, np.inf, Z), tolerance=0.1),
    "stored": lambda: Problem(X, np.tanh(Z), Z=Z, activation="tanh", epsilon=0.1),
    "elu": lambda: Problem(
        X, activations.ELU(0.4)(Z), W, b, activation=activations.ELU(0.4), epsilon=0.1
    ),
    "gelu": lambda: Problem(
        X, activations.GELU(True)(Z), Z=Z, activation=activations.GELU(approximate=True), epsilon=1
    ),
    "prelu": lambda: Problem(
        X, Z, activation=activations.PReLU([0.1, 0.2, 0.3]), epsilon=0.1
    ),
    "hard sigmoid": lambda: Problem(
        X,
        activations.HardSigmoid(0.2, 0.4)(Z),
        activation=activations.HardSigmoid(0.2, 0.4),
        epsilon=0.1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_saved_problem_comes_back_bit_for_bit(tmp_path, make):
    problem = make()
    problem.save(tmp_path / "problem.npz")
    loaded = Problem.load(str(tmp_path / "problem.npz"))
    assert repr(loaded) == repr(problem)
    for name in ("X", "Y", "W", "b", "Z", "lower", "upper", "weights", "epsilon", "lambda_"):
        before, after = getattr(problem, name), getattr(loaded, name)
        if sp.issparse(before):
            before, after = before.toarray(), after.toarray()
        assert (before is None) == (after is None), name
        if before is not None:
            assert np.asarray(before).dtype == np.asarray(after).dtype, name
            np.testing.assert_array_equal(before, after, err_msg=name)
    for name in ("tolerance", "radius", "formulation", "intercept", "activation", "dtype"):
        assert getattr(problem, name) == getattr(loaded, name), name
    for before, after in zip(problem.box(), loaded.box(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_file_holds_plain_arrays_under_the_names_of_the_arguments(tmp_path):
    KINDS["relu"]().save(tmp_path / "problem.npz")
    with np.load(tmp_path / "problem.npz", allow_pickle=False) as file:
        assert set(file.files) == {"X", "Y", "W", "b", "weights", "epsilon", "settings"}
        np.testing.assert_array_equal(file["X"], X)
        assert json.loads(str(file["settings"]))["activation"] == "relu"


def test_an_activation_of_ones_own_cannot_be_saved(tmp_path):
    class Cubic(Activation):
        name = "cubic"

        def __call__(self, Z):
            return Z**3

        def preimage(self, Y):
            return np.cbrt(Y), np.cbrt(Y)

    problem = Problem(X, Z, activation=Cubic(), epsilon=1)
    with pytest.raises(
        ProblemError, match=r"activation must be one of .* to be saved, but was Cub"
    ):
        problem.save(tmp_path / "problem.npz")
    assert list(tmp_path.iterdir()) == []


# Refusal ---------------------------------------------------------------------------------------


class Boom:
    """An object whose unpickling leaves a mark."""

    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def written(**changes):
    """The arrays of a good file with some of them changed (None: left out)."""
    settings = {"format": "nettrim_solver.problem/1", "radius": "joint", "formulation": "pooled",
                "intercept": True, "activation": "relu", "activation_parameters": {}}  # fmt: skip
    arrays = {"X": X, "Y": Y, "epsilon": np.array(0.1), "settings": settings} | changes
    if isinstance(arrays["settings"], dict):
        arrays["settings"] = np.array(json.dumps(arrays["settings"]))
    return {name: array for name, array in arrays.items() if array is not None}


def settings_with(**changes):
    settings = json.loads(str(written()["settings"]))
    return {k: v for k, v in (settings | changes).items() if v is not None}


REFUSED = {
    "a pickled object": written(X=np.array([Boom()], dtype=object)),
    "pickled settings": written(settings=np.array([Boom()], dtype=object)),
    "no settings": written(settings=None),
    "settings that are no JSON": written(settings=np.array("{")),
    "settings that are a number": written(settings=np.array(3.0)),
    "settings that are a JSON list": written(settings=np.array("[]")),
    "settings nested without end": written(settings=np.array("[" * 100_000)),
    "another format": written(settings=settings_with(format="nettrim_solver.problem/2")),
    "no format": written(settings=settings_with(format=None)),
    "no radius": written(settings=settings_with(radius=None)),
    "an unknown activation": written(settings=settings_with(activation="os.system")),
    "an activation that is a list": written(settings=settings_with(activation=["relu"])),
    "parameters it has not": written(settings=settings_with(activation_parameters={"a": 1})),
    "no X": written(X=None),
    "text for a number": written(epsilon=np.array("small")),
    "a sparse X without its parts": written(X=None, X_data=np.ones(3)),
    "sparse indices out of range": written(
        X=None, X_data=np.ones(1), X_indices=np.array([9]), X_indptr=np.array([0] * 9 + [1]),
        X_shape=np.array([9, 4]),
    ),
    "a sparse shape that is text": written(
        X=None, X_data=np.ones(1), X_indices=np.array([0]), X_indptr=np.array([0] * 9 + [1]),
        X_shape=np.array(["9", "4"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("arrays", REFUSED.values(), ids=REFUSED)
def test_other_archives_are_refused_by_name(tmp_path, monkeypatch, arrays):
    monkeypatch.chdir(tmp_path)
    np.savez("problem.npz", **arrays)
    with pytest.raises(ProblemFileError, match=r"problem\.npz"):
        Problem.load("problem.npz")
    assert not os.path.exists("unpickled")


def test_the_archive_that_the_refused_ones_vary_is_good(tmp_path):
    np.savez(tmp_path / "problem.npz", **written())
    assert Problem.load(tmp_path / "problem.npz").n_outputs == 3


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"Y": -Y - 1}, "Y"),
        ({"X": X + 1j}, "X"),
        ({"epsilon": np.array(-1.0)}, "epsilon"),
        ({"settings": settings_with(intercept="yes")}, "intercept"),
        ({"settings": settings_with(radius=3)}, "radius"),
        (
            {"settings": settings_with(activation="elu", activation_parameters={"alpha": -1})},
            "alpha",
        ),
    ],
)
def test_arrays_that_make_no_problem_name_the_argument(tmp_path, changes, argument):
    np.savez(tmp_path / "problem.npz", **written(**changes))
    with pytest.raises(ProblemError, match=argument):
        Problem.load(tmp_path / "problem.npz")


def test_pickles_and_other_numpy_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("problem.npz", "wb") as file:
        pickle.dump(Boom(), file)
    with pytest.raises(ProblemFileError, match=r"not an \.npz archive \(pickles are refused"):
        Problem.load("problem.npz")
    assert not os.path.exists("unpickled")
    np.save("problem.npy", X)
    with pytest.raises(ProblemFileError, match=r"not an \.npz archive"):
        Problem.load("problem.npy")
    with pytest.raises(ProblemFileError, match=r"there is no file .*none\.npz"):
        Problem.load("none.npz")
    with pytest.raises(ProblemFileError):
        Problem.load(tmp_path)


# Damage ----------------------------------------------------------------------------------------


def saved_bytes(tmp_path, kind):
    path = tmp_path / "problem.npz"
    KINDS[kind]().save(path)
    return path, path.read_bytes()


@pytest.mark.parametrize("kind", ["relu", "sparse"])
def test_truncation_at_any_offset_is_noticed(tmp_path, kind):
    path, content = saved_bytes(tmp_path, kind)
    for offset in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:offset])
        with pytest.raises(ProblemFileError):
            Problem.load(path)


@pytest.mark.filterwarnings("ignore")  # of the archive reader, about the damage
@pytest.mark.parametrize("kind", ["relu", "sparse", "prelu"])
def test_random_damage_is_noticed_or_harmless(tmp_path, kind):
    path, content = saved_bytes(tmp_path, kind)
    original = Problem.load(path)
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for offset in rng.integers(len(damaged), size=rng.integers(1, 9)):
            damaged[offset] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            loaded = Problem.load(path)
        except ProblemError:
            refused += 1
        else:
            # Bytes that carry nothing, such as time stamps: then the problem is the same.
            assert repr(loaded) == repr(original)
            assert abs(loaded.X - original.X).max() == 0
    assert refused > 75


def test_a_header_that_claims_fewer_entries_is_noticed(tmp_path):
    path, content = saved_bytes(tmp_path, "relu")
    assert content.count(b"(9, 3), }") == 1
    path.write_bytes(content.replace(b"(9, 3), }", b"(9, 2), }"))
    with pytest.raises(ProblemFileError, match=r"checksum of 'Y\.npy' is wrong"):
        Problem.load(path)


def test_a_header_that_claims_all_memory_is_refused(tmp_path):
    path = tmp_path / "problem.npz"
    np.savez(path, **written())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**50, 2**8)}
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("W.npy", header.getvalue())
    with pytest.raises(ProblemFileError):
        Problem.load(path)


# Atomic writes ---------------------------------------------------------------------------------


def test_saving_keeps_the_name_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "layer without suffix"
    KINDS["relu"]().save(path)
    KINDS["box"]().save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert Problem.load(path).activation is None
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["numpy.savez", "os.replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, where, error):
    path, content = saved_bytes(tmp_path, "relu")

    def fail(target, *args, **kwargs):
        if where == "numpy.savez":
            target.write(b"half of a file")
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(type(error)):
        KINDS["box"]().save(path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path, content = saved_bytes(tmp_path, "relu")
    root = os.geteuid() == 0
    tmp_path.chmod(0o555)
    if root:  # to whom permissions do not apply
        os.seteuid(65534)
    try:
        with pytest.raises(OSError):
            KINDS["box"]().save(path)
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_missing_folder_is_an_error_of_the_file_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_arrays(tmp_path / "none" / "problem.npz", {"X": X})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="no ordinary file"):
        save_arrays(pipe, {"x": np.zeros(2)})
    assert pipe.is_fifo()


def test_a_folder_is_said_to_be_unreadable(tmp_path):
    with pytest.raises(ProblemFileError, match="cannot be read"):
        load_arrays(tmp_path, "a file")


# Files made to do harm ---------------------------------------------------------------------------


def crafted(tmp_path, **changes):
    """A file of a sparse problem, some arrays of which were replaced."""
    path = tmp_path / "crafted.npz"
    Problem(SPARSE, Y, epsilon=0.1).save(path)
    arrays = load_arrays(path, "a problem")
    for name, value in changes.items():
        arrays[name] = value(arrays[name]) if callable(value) else value
    save_arrays(path, arrays)
    return path


CRAFTED = {
    "indptr runs ahead": {"X_indptr": lambda p: np.r_[0, 200_000, np.zeros(len(p) - 2, int)]},
    "indptr falls": {"X_indptr": lambda p: np.r_[p[:3], p[1], p[4:]]},
    "indptr is negative": {"X_indptr": lambda p: np.r_[-5, p[1:]]},
    "indptr ends beyond": {"X_indptr": lambda p: np.r_[p[:-1], p[-1] + 7]},
    "indptr is a float": {"X_indptr": lambda p: p.astype(float)},
    "indptr wraps": {"X_indptr": lambda p: np.r_[p[:-1], 0].astype(np.uint64)},
    "indptr is a matrix": {"X_indptr": lambda p: p[:, None]},
    "indices reach beyond": {"X_indices": lambda i: i + 4},
    "indices are negative": {"X_indices": lambda i: i - 1},
    "indices are floats": {"X_indices": lambda i: i.astype(float)},
    "data are too few": {"X_data": lambda d: d[:-1]},
    "shape is too wide": {"X_shape": np.array([9, 10**12])},
    "shape is too wide for its entries": {"X_shape": np.array([9, 250_000_000])},
    "shape is negative": {"X_shape": np.array([9, -4])},
    "shape is three numbers": {"X_shape": np.array([9, 4, 1])},
    "shape is a float": {"X_shape": np.array([9.0, 4.0])},
}


@pytest.mark.parametrize("changes", CRAFTED.values(), ids=CRAFTED)
def test_crafted_sparse_arrays_are_refused_before_scipy_sees_them(tmp_path, changes):
    with pytest.raises(ProblemError):
        Problem.load(crafted(tmp_path, **changes))


@pytest.mark.parametrize("format", ["csr", "csc"])
def test_crafted_sparse_inputs_in_memory_are_refused_too(format):
    matrix = SPARSE.asformat(format)
    matrix.indptr[1] = 200_000
    with pytest.raises(ProblemError, match=f"X is no sparse matrix in {format} form: indptr"):
        Problem(matrix, Y, epsilon=0.1)


def test_files_that_unpack_to_far_more_than_their_size_are_refused_unread(tmp_path):
    path = tmp_path / "bomb.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**26,)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("X.npy", "w") as member:
            member.write(header.getvalue())
            for _ in range(2**9):
                member.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(ProblemFileError, match="is compressed .* times, and would take"):
        load_arrays(path, "a problem")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_headers_that_ask_for_more_than_there_is_are_refused_unread(tmp_path):
    path = tmp_path / "liar.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", header.getvalue())
    with pytest.raises(ProblemFileError, match="is not a problem"):
        load_arrays(path, "a problem")

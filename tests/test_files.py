"""Files of other people, and of writers that were killed: modes, links, leftovers, and memory."""

import io
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nettrim_solver import Problem
from nettrim_solver.exceptions import NettrimError, ProblemFileError
from nettrim_solver.frameworks import from_npz, to_npz
from nettrim_solver.network import Dense, Network
from nettrim_solver.problem_file import load_arrays, save_arrays, whole_file
from nettrim_solver.storage import load_sparse, save_sparse

NETWORK = Network([Dense(np.eye(4, 3), np.zeros(3))])
posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and signals are POSIX's")


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


# Writing -----------------------------------------------------------------------------------------

WRITERS = {
    "arrays": lambda path: save_arrays(path, {"x": np.ones(3)}),
    "a network": lambda path: to_npz(NETWORK, path),
    "a sparse network": lambda path: save_sparse(path, NETWORK),
    "a problem": lambda path: Problem(np.eye(3), np.eye(3)).save(path),
}


@posix
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(write, mode, tmp_path):
    path = tmp_path / "file.npz"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert mode_of(path) == mode and path.read_bytes() != b"old"


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_the_mode_of_the_umask_which_nobody_changes(mask, tmp_path, monkeypatch):
    old = os.umask(mask)
    monkeypatch.setattr(os, "umask", None)  # Other threads would create files under it.
    try:
        WRITERS["arrays"](tmp_path / "file.npz")
    finally:
        monkeypatch.undo()
        os.umask(old)
    assert mode_of(tmp_path / "file.npz") == 0o666 & ~mask


@posix
def test_the_content_of_a_private_file_is_private_while_it_is_written(tmp_path):
    path = tmp_path / "file.npz"
    path.touch(0o600)
    with whole_file(path) as stream:
        stream.write(b"secret")
        stream.flush()
        assert {mode_of(one) for one in tmp_path.iterdir()} == {0o600}


@posix
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_link_is_followed_and_stays_one(write, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file.npz", tmp_path / "here" / "link.npz"
    for content in (b"old", None):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        target.write_bytes(content) if content else target.unlink()
        write(link)
        assert link.is_symlink() and zipfile.is_zipfile(target)
        assert [one.name for one in target.parent.iterdir()] == ["file.npz"]


def test_long_names_are_written(tmp_path):
    path = tmp_path / ("x" * 251 + ".npz")
    WRITERS["arrays"](path)
    assert path.exists()


@posix
def test_what_killed_writers_left_is_removed_by_the_next_one(tmp_path):
    code = (
        "import os, sys\nfrom nettrim_solver.problem_file import whole_file\n"
        "with whole_file(sys.argv[1]) as stream:\n"
        "    stream.write(bytes(1000)); stream.flush(); print('half', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file.npz")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "half\n"
        WRITERS["arrays"](tmp_path / "other.npz")
        assert len([*tmp_path.iterdir()]) == 2  # The living writer's file stays.
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len([*tmp_path.iterdir()]) == 2
    (tmp_path / ".nettrim-elsewhere-1-01234567.tmp").touch()  # Another machine's.
    (tmp_path / ".hidden.tmp").touch()
    WRITERS["arrays"](tmp_path / "other.npz")
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        ".hidden.tmp", ".nettrim-elsewhere-1-01234567.tmp", "other.npz"
    ]  # fmt: skip


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1]
        )
    WRITERS["arrays"](tmp_path / "file.npz")
    assert calls == ["fsync", "replace"]


def test_writers_of_one_file_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "file.npz"

    def write(number):
        for _ in range(10):
            save_arrays(path, {"x": np.full(1000, number)})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    [one.start() for one in threads]
    [one.join() for one in threads]
    assert np.ptp(load_arrays(path, "arrays")["x"]) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["file.npz"]


# Reading -----------------------------------------------------------------------------------------

SPARSE = {
    "X_data": np.ones(3), "X_indices": np.array([0, 1, 2]), "X_indptr": np.array([0, 1, 2, 2, 3]),
    "X_shape": np.array([4, 3]), "Y": np.ones((4, 2)), "epsilon": np.array(0.1),
    "settings": np.array(
        '{"format": "nettrim_solver.problem/1", "radius": "joint", "formulation": "pooled", '
        '"intercept": false}'
    ),
}  # fmt: skip


def load(folder, **changes):
    np.savez(folder / "problem.npz", **{**SPARSE, **changes})
    return Problem.load(folder / "problem.npz")


CRAFTED = {
    "counts that fall": {"X_indptr": np.array([0, 200_000, 0, 0, 0]), "X_data": np.ones(0),
                         "X_indices": np.ones(0, int)},
    "counts beyond the data": {"X_indptr": np.array([0, 1, 2, 2, 9])},
    "counts below 0": {"X_indptr": np.array([0, -5, 2, 2, 3])},
    "counts that begin late": {"X_indptr": np.array([1, 1, 2, 2, 3])},
    "counts that wrap": {"X_indptr": np.array([0, 2**64 - 1, 2, 2, 3], np.uint64)},
    "fractions as counts": {"X_indptr": np.array([0.0, 1, 2, 2, 3])},
    "complex places": {"X_indices": np.array([0, 1, 2j])},
    "places beyond the columns": {"X_indices": np.array([0, 1, 3])},
    "places below 0": {"X_indices": np.array([0, 1, -1])},
    "more data than places": {"X_data": np.ones(4)},
    "data in rows": {"X_data": np.ones((3, 1))},
    "data of text": {"X_data": np.array(["a", "b", "c"])},
    "objects of a shape": {"X_shape": np.array([4.0, 3.0])},
    "three sizes": {"X_shape": np.array([4, 3, 1])},
    "no rows": {"X_shape": np.array([0, 3]), "X_indptr": np.array([0])},
    "a shape below 0": {"X_shape": np.array([4, -3])},
    "a shape of 2 GB": {"X_shape": np.array([4, 250_000_000])},
    "a shape beyond all memory": {"X_shape": np.array([4, 10**12])},
}  # fmt: skip


@pytest.mark.parametrize("changes", CRAFTED.values(), ids=CRAFTED)
def test_sparse_arrays_are_checked_before_compiled_code_sees_them(changes, tmp_path):
    assert load(tmp_path).X.nnz == 3
    tracemalloc.start()
    try:
        with pytest.raises(ProblemFileError, match=r"problem\.npz"):
            load(tmp_path, **changes)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@settings(max_examples=300)
@given(data=st.data())
def test_any_sparse_arrays_are_read_or_refused(tmp_path_factory, data):
    numbers = st.lists(st.integers(-3, 9) | st.just(2**40), max_size=7)
    dtypes = st.sampled_from(["i4", "i8", "u1", "u8", "f8", "U2", "?"])
    changes = {}
    for name in data.draw(st.sets(st.sampled_from(["data", "indices", "indptr", "shape"]))):
        drawn = np.array(data.draw(numbers))
        changes[f"X_{name}"] = drawn.astype(data.draw(dtypes))
    try:
        problem = load(tmp_path_factory.mktemp("sparse"), **changes)
    except NettrimError:
        return
    assert problem.X.toarray().shape == tuple(changes.get("X_shape", [4, 3]))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("read", [Problem.load, from_npz, load_sparse])
def test_a_small_file_takes_little_memory_and_time_before_it_is_refused(read, method, tmp_path):
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("W0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f8", "fortran_order": False, "shape": (1000, 40_000)}
        )
        for _ in range(40):
            member.write(bytes(8_000_000))
    assert path.stat().st_size < 400_000
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(ProblemFileError, match=r"320\d+ bytes of memory") as caught:
            read(path, **({"max_bytes": 10**8} if read is load_sparse else {}))
        assert read is load_sparse or "numpy.savez" in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - began < 5


def test_compressed_files_of_ordinary_arrays_are_read(tmp_path):
    arrays = {"W0": np.zeros((2000, 1000)), "b0": np.zeros(1000)}
    np.savez_compressed(tmp_path / "zeros.npz", **arrays)
    assert (tmp_path / "zeros.npz").stat().st_size < 20_000
    assert from_npz(tmp_path / "zeros.npz").nnz == 0


def test_headers_that_claim_more_than_there_is_take_no_memory(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**4)}
    )
    with zipfile.ZipFile(tmp_path / "file.npz", "w") as archive:
        archive.writestr("W0.npy", stream.getvalue())
    with pytest.raises(ProblemFileError):
        from_npz(tmp_path / "file.npz")

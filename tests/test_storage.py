"""Sparse files of whole networks: round trips, bytes as reported, refusals, failed writes."""

import dataclasses
import io
import json
import os
import pickle
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver.exceptions import ProblemError, ProblemFileError, SettingsError
from nettrim_solver.frameworks import from_npz, to_npz
from nettrim_solver.network import (
    Activate,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    Network,
    Operation,
)
from nettrim_solver.storage import FORMATS, load_sparse, pack, save_sparse, size_report, unpack

from .test_npz import IMAGES, everything

RNG = np.random.default_rng(12)


def pruned(network, density, seed=0):
    """The network with random zeros, and one weight of every layer that is -0.0."""
    rng = np.random.default_rng(seed)
    changes = {}
    for layer in network.layers:
        W = np.where(rng.random(layer.W.shape) < density, layer.W, 0)
        W.flat[rng.integers(W.size)] = -0.0
        changes[layer.name] = (W, layer.b)
    return network.replace(changes)


def small():
    rng = np.random.default_rng(3)
    operations = [
        Conv2d(rng.standard_normal((4, 2, 3, 3)), np.ones(4)), Activate("relu"), Flatten(),
        Dense(rng.standard_normal((64, 20)), np.ones(20), name="hidden"), Activate("tanh"),
        Dense(rng.standard_normal((20, 5))),
    ]  # fmt: skip
    return pruned(Network(operations, (2, 6, 6)).astype(np.float32), 0.3)


def stored(path):
    """All arrays of a file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def weight_bytes(arrays):
    return sum(a.nbytes for name, a in arrays.items() if name[0] == "W" and name[1].isdigit())


# There and back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FORMATS, "smallest"])
@pytest.mark.parametrize("dtype", [None, np.float32, np.float64])
def test_a_network_comes_back_bit_for_bit(tmp_path, name, dtype):
    network = everything() if dtype is None else everything().astype(dtype)
    network = pruned(network, 0.1)
    save_sparse(tmp_path / "a.npz", network, name)
    again = load_sparse(str(tmp_path / "a.npz"))
    assert again.summary() == network.summary() and again.input_shape == network.input_shape
    assert [repr(op) for op in again.operations] == [repr(op) for op in network.operations]
    for before, after in zip(network.layers, again.layers, strict=True):
        assert before.W.tobytes() == after.W.tobytes() and before.dtype == after.dtype
        assert np.array_equal(before.b, after.b) if before.b is not None else after.b is None
    np.testing.assert_array_equal(again(IMAGES), network(IMAGES))


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.2, 0.9]),
       st.sampled_from([*FORMATS, "smallest"]), st.sampled_from([2, 4, 5, None]))  # fmt: skip
def test_reported_bytes_are_those_of_the_arrays_in_the_file(
    tmp_path_factory, seed, density, name, gap_bits
):
    path = tmp_path_factory.getbasetemp() / "sizes.npz"
    network = pruned(small(), density, seed)
    report = save_sparse(path, network, name, gap_bits)
    arrays = stored(path)
    assert report == size_report(network, name, gap_bits)
    assert report.bytes == weight_bytes(arrays)
    assert report.other_bytes == sum(arrays[f"b{i}"].nbytes for i in range(2))
    for number, one in enumerate(report.layers):
        parts = {k: a for k, a in arrays.items() if k.split(".")[0] == f"W{number}"}
        assert one.bytes == sum(a.nbytes for a in parts.values())
        W = network.layers[number].W
        assert one.n_kept == np.sum((W != 0) | np.signbit(W))
    if name == "smallest":
        each = [save_sparse(path, network, one, gap_bits).bytes for one in FORMATS]
        assert report.bytes <= min(each)


def test_a_pruned_network_takes_less_and_a_dense_one_no_more(tmp_path):
    to_npz(small(), tmp_path / "dense.npz")
    save_sparse(tmp_path / "sparse.npz", small())
    assert os.path.getsize(tmp_path / "sparse.npz") < os.path.getsize(tmp_path / "dense.npz")
    full = Network([Dense(RNG.standard_normal((30, 20)))])
    report = save_sparse(tmp_path / "full.npz", full)
    assert report.layers[0].chosen == "dense"
    np.testing.assert_array_equal(stored(tmp_path / "full.npz")["W0"], full.layers[0].W)


def test_names_of_operations_do_not_get_in_the_way(tmp_path):
    norm = BatchNorm(*np.ones((4, 3)), name="W0")
    network = pruned(Network([Dense(np.ones((50, 3)), name="W1.values"), norm]), 0.1)
    save_sparse(tmp_path / "a.npz", network, "csr")
    again = load_sparse(tmp_path / "a.npz")
    np.testing.assert_array_equal(again(np.eye(50)), network(np.eye(50)))


def test_a_file_that_was_compressed_once_more_is_read(tmp_path):
    save_sparse(tmp_path / "a.npz", small())
    np.savez_compressed(tmp_path / "b.npz", **stored(tmp_path / "a.npz"))
    assert os.path.getsize(tmp_path / "b.npz") < os.path.getsize(tmp_path / "a.npz")
    X = RNG.standard_normal((3, 2, 6, 6))
    np.testing.assert_array_equal(
        load_sparse(tmp_path / "b.npz")(X), load_sparse(tmp_path / "a.npz")(X)
    )


# The report -------------------------------------------------------------------------------------


def test_the_table_and_the_dictionary_say_the_same():
    report = size_report(small(), gap_bits=4)
    lines = report.table().splitlines()
    assert len(lines) == 1 + 4 * 3 + 5 and lines[-1].split()[:2] == ["chosen", "*"]
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert lines[-1].split()[2:6] == [
        str(content["chosen"][key]) for key in ("values", "indices", "fillers", "bytes")
    ]
    assert content["bytes"] == sum(layer["bytes"] for layer in content["layers"]) == report.bytes
    assert content["ratio"] == content["float32_bytes"] / content["bytes"]
    for name in FORMATS:
        total = sum(layer["sizes"][name]["bytes"] for layer in content["layers"])
        assert content["sizes"][name]["bytes"] == total
        parts = content["sizes"][name]
        assert parts["bytes"] == parts["values"] + parts["indices"] + parts["fillers"]
    sizes = report.chosen
    assert report.overhead == (sizes.indices + sizes.fillers) / sizes.values


def test_a_network_of_zeros_alone_takes_nothing(tmp_path):
    network = Network([Dense(np.zeros((40, 30)))])
    report = save_sparse(tmp_path / "a.npz", network)
    assert (report.bytes, report.ratio) == (0, np.inf)
    assert report.to_dict()["ratio"] is None and "inf" in report.table()
    assert not load_sparse(tmp_path / "a.npz").layers[0].W.any()


# Refusal ----------------------------------------------------------------------------------------


def changed(path, **changes):
    """Write a good file with some arrays changed (None: left out), and its checksums right."""
    save_sparse(path, small(), "csr")
    arrays = stored(path) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def described(**changes):
    """The text of a good file with some fields of W1 changed (None: left out)."""
    entry = {"format": "csr", "shape": [64, 20]} | changes
    entry = {name: value for name, value in entry.items() if value is not None}
    arrays = {"W0": {"format": "csr", "shape": [4, 2, 3, 3]}, "W1": entry,
              "W2": {"format": "csr", "shape": [20, 5]}}  # fmt: skip
    return np.array(json.dumps({"format": "nettrim_solver.sparse/1", "arrays": arrays}))


BAD = {
    "no description": ({"sparse": None}, "must hold the texts 'sparse' and 'network'.*from_npz"),
    "no network": ({"network": None}, "must hold the texts"),
    "empty": ({"sparse": np.array("")}, "is not a network written by save_sparse"),
    "list": ({"sparse": np.array("[]")}, "is not a network written"),
    "other version": ({"sparse": np.array('{"format": "x/2"}')}, "its format must be .* 'x/2'"),
    "deep": ({"sparse": np.array("[" * 100000)}, "is not a network written"),
    "format": ({"sparse": described(format="coo")}, "format must be one of .* but was 'coo'"),
    "unhashable format": ({"sparse": described(format=[])}, "format must be one of"),
    "no shape": ({"sparse": described(shape=None)}, "is not a network written"),
    "shape of text": ({"sparse": described(shape="64")}, "shape of 'W1' must be a list"),
    "empty shape": ({"sparse": described(shape=[])}, "shape of 'W1' must be a list"),
    "fraction": ({"sparse": described(shape=[64, 20.0])}, "shape of 'W1' must be a list"),
    "truth": ({"sparse": described(shape=[64, True])}, "shape of 'W1' must be a list"),
    "negative": ({"sparse": described(shape=[-64, -20])}, "shape of 'W1' must be positive"),
    "transposed": ({"sparse": described(shape=[20, 64])}, "no csr form of an array of shape"),
    "huge": ({"sparse": described(shape=[64, 10**15])}, "more than max_bytes=4294967296"),
    "absurd": ({"sparse": described(shape=[64, 10**400])}, "more than max_bytes"),
    "missing part": ({"W1.indptr": None}, "must have indptr, but has none"),
    "missing layer": ({"sparse": np.array('{"format": "nettrim_solver.sparse/1", "arrays": {}}')},
                      "is not a network written"),
    "dense too": ({"W1": np.ones((64, 20), "f4")}, "'W1' must be stored once"),
    "NaN": ({"W2.values": np.full(12, np.nan, "f4")}, "must be finite|no csr form"),
    "text": ({"W1.values": np.array(["a"])}, "values must be float16"),
    "other network": ({"network": np.array('{"format": "y/1"}')}, "must be of the format"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_files_that_contradict_themselves_are_refused_in_one_line(tmp_path, changes, message):
    path = changed(tmp_path / "a.npz", **changes)
    with pytest.raises(ProblemFileError, match=message) as caught:
        load_sparse(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ProblemFileError, match="there is no file .*missing.npz"):
        load_sparse(tmp_path / "missing.npz")
    with pytest.raises(ProblemFileError, match="cannot be read"):
        load_sparse(tmp_path)
    (tmp_path / "text.npz").write_text("W0 = 1")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(small()))
    for name in ("text.npz", "empty.npz", "pickle.npz"):
        with pytest.raises(ProblemFileError, match=r"is not an .npz archive \(pickles are refus"):
            load_sparse(tmp_path / name)
    to_npz(small(), tmp_path / "dense.npz")
    with pytest.raises(ProblemFileError, match="from_npz reads dense networks"):
        load_sparse(tmp_path / "dense.npz")


def test_a_reader_of_dense_files_names_the_one_of_sparse_files(tmp_path):
    save_sparse(tmp_path / "a.npz", small())
    with pytest.raises(ProblemError, match="no array 'W0'; load_sparse reads sparse files"):
        from_npz(tmp_path / "a.npz")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    for name in ("sparse", "network", "W1.values"):
        path = changed(tmp_path / "a.npz", **{name: np.array([Bomb()], dtype=object)})
        with pytest.raises(ProblemFileError, match="pickles are refused"):
            load_sparse(path)
    assert not (tmp_path / "exploded").exists()


def test_truncated_files_are_refused_wherever_they_end(tmp_path):
    save_sparse(tmp_path / "a.npz", small())
    content = (tmp_path / "a.npz").read_bytes()
    for end in np.linspace(0, len(content) - 1, 40).astype(int):
        (tmp_path / "b.npz").write_bytes(content[:end])
        with pytest.raises(ProblemFileError):
            load_sparse(tmp_path / "b.npz")


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    path = changed(tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        stream = io.BytesIO()
        np.save(stream, np.zeros(1 << 20))
        archive.writestr("zeros.npy", stream.getvalue())
    assert os.path.getsize(path) < 1 << 15
    with pytest.raises(ProblemFileError, match="it takes .* bytes of memory, more than max_bytes"):
        load_sparse(path, max_bytes=1 << 20)
    load_sparse(path)


def test_the_limit_counts_the_weights_that_a_file_describes(tmp_path):
    save_sparse(tmp_path / "a.npz", Network([Dense(np.zeros((400, 300)))]), "relative")
    needed = 8 * 400 * 300
    assert load_sparse(tmp_path / "a.npz", max_bytes=needed).n_weights == 120000
    with pytest.raises(ProblemFileError, match=f"{needed} bytes of memory"):
        load_sparse(tmp_path / "a.npz", max_bytes=needed - 1)


def test_bad_arguments_are_named(tmp_path):
    for call in (
        lambda network: save_sparse(tmp_path / "a.npz", network),
        lambda network: size_report(network),
    ):
        with pytest.raises(ProblemError, match="network must be a Network, but was a dict"):
            call({})
    with pytest.raises(SettingsError, match="format must be one of .* but was 'zip'"):
        save_sparse(tmp_path / "a.npz", small(), "zip")
    with pytest.raises(SettingsError, match="gap_bits must be an integer >= 1, but was -1"):
        size_report(small(), gap_bits=-1)
    with pytest.raises(SettingsError, match="max_bytes must be an integer >= 1, but was 0"):
        load_sparse(tmp_path / "a.npz", max_bytes=0)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    class Twice(Operation):
        def _compute(self, *inputs):
            return 2 * inputs[0]

        def _output_shape(self, *shapes):
            return shapes[0]

    path = tmp_path / "a.npz"
    save_sparse(path, small())
    before = path.read_bytes()
    with pytest.raises(ProblemError, match="must be one of .* to be saved, but is a Twice"):
        save_sparse(path, Network([Dense(np.ones((2, 2))), Twice()]))
    with pytest.raises(OSError, match="No such file"):
        save_sparse(tmp_path / "missing" / "a.npz", small())

    def fail(stream, **arrays):
        stream.write(b"PK half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space left"):
        save_sparse(path, small())
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.npz"]


def test_files_are_smaller_than_compressed_dense_arrays(tmp_path):
    rng = np.random.default_rng(0)
    for density in (0.02, 0.05, 0.1, 0.3):
        W = 0.05 * rng.standard_normal((784, 300)).astype(np.float32)
        W[rng.random(W.shape) > density] = 0
        network = Network([Dense(W, np.zeros(300))])
        save_sparse(tmp_path / "sparse.npz", network)
        to_npz(network, tmp_path / "dense.npz")
        np.savez_compressed(tmp_path / "compressed.npz", W0=W, b0=np.zeros(300))
        sizes = {path.stem: path.stat().st_size for path in tmp_path.iterdir()}
        assert sizes["sparse"] < 0.95 * sizes["compressed"] < sizes["dense"]
        assert load_sparse(tmp_path / "sparse.npz").layers[0].W.tobytes() == W.tobytes()


def test_the_same_network_gives_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_sparse(tmp_path / name, pruned(small(), 0.2))
        time.sleep(0.01)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    "shape", [(4, 2**62), (2**40, 2**40), (-4, 2), (4.0, 2), ("4", 2), (), (10**7, 10**7)]
)
@pytest.mark.parametrize("form", FORMATS)
def test_shapes_that_no_array_has_are_refused(form, shape):
    packed = pack(np.eye(4), form)
    with pytest.raises(ProblemError):
        unpack(dataclasses.replace(packed, shape=shape))

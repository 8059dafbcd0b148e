"""Networks as ``.npz`` files: by hand, written and read back, damaged, and plainly wrong."""

import io
import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import activations
from nettrim_solver.activations import Activation
from nettrim_solver.demo import load_demo_network
from nettrim_solver.exceptions import ProblemError, ProblemFileError
from nettrim_solver.frameworks import from_npz, npz, to_npz
from nettrim_solver.network import (
    Activate,
    Add,
    Affine,
    AveragePool2d,
    BatchNorm,
    Concatenate,
    Conv2d,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePool,
    MaxPool2d,
    Network,
    Operation,
    Part,
    Reshape,
    Softmax,
    Transpose,
)

RNG = np.random.default_rng(9)
W0, W1, W2 = (RNG.standard_normal(shape) for shape in ((6, 5), (5, 4), (4, 3)))
b0, b1, b2 = (RNG.standard_normal(n) for n in (5, 4, 3))
CHAIN = {"W0": W0, "b0": b0, "W1": W1, "b1": b1, "W2": W2, "b2": b2}
X = RNG.standard_normal((7, 6))
IMAGES = RNG.standard_normal((2, 8, 9, 3))


def everything():
    """A network with every kind of operation, and parameters that differ from the defaults."""
    return Network(
        [
            Transpose((2, 0, 1), name="channels first"),
            Affine([[[0.5]], [[2.0]], [[1.0]]], -0.1, name="scaled"),
            Conv2d(RNG.standard_normal((6, 1, 3, 2)), RNG.standard_normal(6), (1, 2), (0, 1, 2, 1),
                   2, 3, name="conv"),
            BatchNorm(*RNG.random((4, 6)), eps=1e-3),
            Activate(activations.PReLU([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), name="start"),
            Conv2d(RNG.standard_normal((6, 6, 3, 3)).astype("f"), padding="same"),
            Add(inputs=("conv2d_0", "start")),
            MaxPool2d(2, 1, 1, 1),
            AveragePool2d((1, 2), padding=(0, 1), count_include_pad=True),
            Activate(activations.GELU(approximate=True)),
            Dropout(),
            GlobalAveragePool(keep_dims=True),
            Flatten(),
            Reshape((-1, 2)),
            Softmax(axis=0, log=True),
            Flatten(name="features"),
            Part([(4,), (1, 2)], 0, name="begin"),
            Part([(4,), (1, 2)], 1, inputs="features"),
            Affine(0.0, 1.0),
            Embedding(RNG.standard_normal((3, 2))),
            Flatten(name="rows"),
            Concatenate(-1, inputs=("begin", "rows")),
            Dense(RNG.standard_normal((8, 3)), name="last"),
        ],
        input_shape=(8, 9, 3),
    )  # fmt: skip


# By hand ----------------------------------------------------------------------------------------


def test_arrays_make_a_relu_network():
    network = from_npz(CHAIN)
    hidden = np.maximum(np.maximum(X @ W0 + b0, 0) @ W1 + b1, 0)
    np.testing.assert_array_equal(network(X), hidden @ W2 + b2)
    assert [layer.name for layer in network.layers] == ["W0", "W1", "W2"]
    assert [op.kind for op in network.operations] == ["dense", "relu"] * 2 + ["dense"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_is_its_arrays(save, tmp_path):
    save(tmp_path / "network.npz", labels=np.arange(3), **CHAIN)
    for path in (tmp_path / "network.npz", str(tmp_path / "network.npz")):
        np.testing.assert_array_equal(from_npz(path)(X), from_npz(CHAIN)(X))


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        (["tanh", "sigmoid"], ["tanh", "sigmoid"]),
        (["tanh", "identity"], ["tanh"]),
        (["relu", "elu", "identity"], ["relu", "elu"]),
        (["relu", "elu", "tanh"], ["relu", "elu", "tanh"]),
        ("silu", ["silu", "silu"]),
    ],
)
def test_activations_are_named(given, kinds):
    network = from_npz(CHAIN | {"activations": np.array(given)})
    assert [op.kind for op in network.operations if isinstance(op, Activate)] == kinds


def test_filters_make_convolutions():
    arrays = {
        "W0": RNG.standard_normal((4, 1, 3, 3)), "b0": np.zeros(4), "stride0": np.array([2, 1]),
        "padding0": np.array("same"), "groups0": np.array(2), "W1": RNG.standard_normal((84, 3)),
        "b1": np.zeros(3), "input_shape": np.array([2, 5, 9]),
    }  # fmt: skip
    with pytest.raises(ProblemError, match="needs stride 1"):
        from_npz(arrays)
    network = from_npz(arrays | {"padding0": np.array([1, 0, 1, 0])})
    first = network.layers[0]
    assert (first.stride, first.padding, first.groups) == ((2, 1), (1, 0, 1, 0), 2)
    assert network.input_shape == (2, 5, 9) and network.shapes["flatten_0"] == (84,)
    assert [op.kind for op in network.operations] == ["conv2d", "relu", "flatten", "dense"]


def test_the_shipped_network_is_read():
    from importlib import resources

    with resources.as_file(resources.files("nettrim_solver") / "data" / "digits_mlp.npz") as path:
        network = from_npz(path)
    demo = load_demo_network()
    np.testing.assert_array_equal(network(demo.X_test), demo.network(demo.X_test))


# There and back ---------------------------------------------------------------------------------


def test_every_operation_has_its_place_in_the_round_trip():
    kinds = {type(op) for op in everything().operations}
    concrete = {Activate, Add, Affine, AveragePool2d, BatchNorm, Concatenate, Conv2d, Dense,
                Dropout, Embedding, Flatten, GlobalAveragePool, MaxPool2d, Part, Reshape, Softmax,
                Transpose}  # fmt: skip
    assert kinds == concrete == set(npz.OPERATIONS.values())


@pytest.mark.parametrize("dtype", [None, np.float32, np.float64])
def test_a_written_network_comes_back_bit_for_bit(tmp_path, dtype):
    network = everything() if dtype is None else everything().astype(dtype)
    to_npz(network, tmp_path / "network.npz")
    again = from_npz(tmp_path / "network.npz")
    np.testing.assert_array_equal(again(IMAGES), network(IMAGES))
    assert again.summary() == network.summary() and again.input_shape == (8, 9, 3)
    for before, after in zip(network.layers, again.layers, strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before.W, after.W)
        assert (before.b is None) == (after.b is None)
    assert [repr(op) for op in network.operations] == [repr(op) for op in again.operations]


def test_a_written_chain_can_be_read_by_hand(tmp_path):
    to_npz(from_npz(CHAIN), tmp_path / "network.npz")
    with np.load(tmp_path / "network.npz") as file:
        assert set(CHAIN) | {"network"} == set(file.files)
        for name, array in CHAIN.items():
            np.testing.assert_array_equal(file[name], array)
        assert json.loads(str(file["network"]))["format"] == npz.FORMAT


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "network.npz"
    to_npz(from_npz(CHAIN), path)
    before = path.read_bytes()

    def fail(stream, **arrays):
        stream.write(b"PK half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space left"):
        to_npz(everything(), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["network.npz"]
    with pytest.raises(OSError, match="No such file"):
        to_npz(everything(), tmp_path / "missing" / "network.npz")


def test_what_is_not_of_this_package_is_not_written(tmp_path):
    class Square(Activation):
        name = "square"

        def __call__(self, Z):
            return Z**2

    class Twice(Operation):
        def _compute(self, *inputs):
            return 2 * inputs[0]

        def _output_shape(self, *shapes):
            return shapes[0]

    with pytest.raises(ProblemError, match=r"activation must be one of .* but was Square\(\)"):
        to_npz(Network([Activate(Square())]), tmp_path / "a.npz")
    with pytest.raises(ProblemError, match="must be one of .* to be saved, but is a Twice"):
        to_npz(Network([Twice()]), tmp_path / "a.npz")
    assert os.listdir(tmp_path) == []


# Bad input --------------------------------------------------------------------------------------


def without(name):
    return {key: array for key, array in CHAIN.items() if key != name}


BAD = {
    "missing b": (without("b1"), "b1 is missing: .* give zeros for a layer without intercept"),
    "missing W": (without("W1"), "W1 is missing: layers are numbered from 0 without gaps"),
    "numbered from 1": ({"W1": W0, "b1": b0}, "W0 is missing"),
    "gap": ({"W0": W0, "b0": b0, "W2": W1, "b2": b1}, "W1 is missing"),
    "b too many": (CHAIN | {"b3": b0}, "b3 belongs to no layer: the last one is W2"),
    "stride of nothing": (CHAIN | {"stride5": np.array(1)}, "stride5 belongs to no layer"),
    "nothing": ({"a": W0}, r"must have arrays W0, b0, ..., but has \['a'\]"),
    "small letter": (CHAIN | {"w3": W0}, "must be named W0, b0, .* but one is named 'w3'"),
    "underscore": (CHAIN | {"b_3": b0}, "one is named 'b_3'"),
    "leading zero": (CHAIN | {"W00": W0}, "one is named 'W00'"),
    "singular": (CHAIN | {"activation": np.array("tanh")}, "one is named 'activation'"),
    "NaN": (CHAIN | {"W1": W1 * np.nan}, r"'W1' \(dense\): W must be finite, but holds 20"),
    "infinite b": (CHAIN | {"b2": b2 * np.inf}, "operation 'W2' .*: b must be finite"),
    "no chain": (CHAIN | {"W1": W1.T, "b1": b0}, r"'W1' .* shape \(4,\), but gets \(5,\)"),
    "length of b": (CHAIN | {"b1": b2}, r"'W1' \(dense\): b must have shape \(4,\)"),
    "vector W": (CHAIN | {"W1": b1}, r"'W1' \(dense\): W must have shape .* has \(4,\)"),
    "cube W": (CHAIN | {"W1": W1[None]}, r"W must have shape \(n_inputs, n_outputs\)"),
    "text W": (CHAIN | {"W1": np.array([["a"]])}, "W must hold real numbers, but has dtype <U1"),
    "unknown activation": (CHAIN | {"activations": np.array(["a", "b"])}, "activation must be an"),
    "too few activations": (CHAIN | {"activations": np.array(["relu"])}, "names of 2 activations"),
    "numbers": (CHAIN | {"activations": np.arange(2)}, "activations must be the names"),
    "input shape": (CHAIN | {"input_shape": np.array([7])}, r"takes samples of shape \(6,\)"),
    "words as a shape": (CHAIN | {"input_shape": np.array(["a"])}, "input_shape must hold"),
}  # fmt: skip


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_bad_arrays_are_refused_with_what_they_were(arrays, message):
    with pytest.raises(ProblemError, match=message):
        from_npz(arrays)


def test_files_that_are_no_networks(tmp_path):
    with pytest.raises(ProblemFileError, match="there is no file .*missing.npz"):
        from_npz(tmp_path / "missing.npz")
    with pytest.raises(ProblemFileError, match="cannot be read"):
        from_npz(tmp_path)
    (tmp_path / "text.npz").write_text("W0 = 1")
    with pytest.raises(ProblemFileError, match="is not an .npz archive"):
        from_npz(tmp_path / "text.npz")
    np.save(tmp_path / "array.npy", W0)
    with pytest.raises(ProblemFileError, match="is not an .npz archive"):
        from_npz(tmp_path / "array.npy")


def test_pickles_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "object.npz", W0=np.array([Bomb()], dtype=object), b0=b0)
    for name in ("pickle.npz", "object.npz"):
        with pytest.raises(ProblemFileError, match="pickles are refused"):
            from_npz(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a network"),
        ("[]", "is not a network"),
        ("{}", "is not a network"),
        (json.dumps({"format": "other/1"}), "must be of the format 'nettrim_solver.network/1'"),
        ({"input_shape": None, "operations": []}, "must hold at least one operation"),
        ({"input_shape": None, "operations": [{"operation": "__import__"}]}, "is not a network"),
        ({"input_shape": None, "operations": [{"operation": "Flatten", "x": 1}]}, "is not a netw"),
        ({"input_shape": None, "operations": [{"operation": "Dense", "W": {"array": "W9"}}]}, "W9"),
        ({"input_shape": [3, -1], "operations": [{"operation": "Flatten"}]}, "input_shape must"),
        ({"operations": [{"operation": "Flatten"}]}, "is not a network"),
    ],
)
def test_descriptions_that_are_no_networks(text, message):
    if isinstance(text, dict):
        text = json.dumps({"format": npz.FORMAT} | text)
    with pytest.raises(ProblemError, match=message):
        from_npz(CHAIN | {"network": np.array(text)})


@given(st.data())
def test_damaged_files_raise_nothing_else(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    to_npz(Network([Dense(np.ones((2, 2))), Softmax()]), folder / "whole.npz")
    content = bytearray((folder / "whole.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    (folder / "damaged.npz").write_bytes(content)
    try:
        network = from_npz(folder / "damaged.npz")
    except ProblemError:
        return
    np.testing.assert_array_equal(network(np.ones((1, 2))), [[0.5, 0.5]])


def test_a_mapping_is_not_modified_or_aliased():
    arrays = {name: array.copy() for name, array in CHAIN.items()}
    network = from_npz(arrays)
    expected = network(X)
    for array in arrays.values():
        array[:] = 7
    np.testing.assert_array_equal(network(X), expected)


def test_an_open_npz_file_is_a_mapping():
    stream = io.BytesIO()
    np.savez(stream, **CHAIN)
    stream.seek(0)
    with np.load(stream) as file:
        np.testing.assert_array_equal(from_npz(file)(X), from_npz(CHAIN)(X))

"""Whatever readers and writers of models are given, errors are ours or documented built-ins."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from nettrim_solver import frameworks as fw
from nettrim_solver.exceptions import NettrimError
from nettrim_solver.frameworks.files import inspect_model, read_model
from nettrim_solver.network import Activate, Calibration, Dense, Network
from nettrim_solver.storage import load_sparse, pack, save_sparse

pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(0)


class Loud:
    """An object that nobody expects."""

    shape, dtype = "shape", "dtype"

    def __array__(self, *args, **kwargs):
        raise RuntimeError("no array")

    def __repr__(self):
        return "Loud()"


NETWORK = Network([Dense(np.eye(4, 3), np.ones(3), name="fc"), Activate("relu")], (4,))
JUNK = st.one_of(
    st.sampled_from([
        None, True, 0, -1, 3.5, np.nan, "", "name", b"", b"bytes", (), [], {}, [[]], [None], {1: 2},
        object, Loud(), [Loud()], np.ones(3), np.ones((2, 4)), np.ones((0, 4)), np.array("text"),
        np.array([None, 1]), np.ones((2, 4), complex), np.ma.masked_less(np.ones((2, 4)), 2),
        np.full((2, 4), np.nan), sp.eye_array(4), NETWORK, (4,), (-1,), (0,), (2**40,), "ab",
        ("a",), [(4,), (4,)], np.ones((2, 4), "M8[s]"), np.zeros((2, 4), [("a", "f4")]), range(4),
        iter([1]),
    ]),
    st.integers(-(2**70), 2**70),
    st.text(max_size=4),
    st.lists(st.integers(-2, 5), max_size=4),
)  # fmt: skip


def ours(call, *args, allowed=(), **kwargs):
    """Return what a call returns, or None if it raises an error of ours; let others through."""
    try:
        return call(*args, **kwargs)
    except (NettrimError, *allowed) as error:
        assert str(error)
        return None


# Arrays ------------------------------------------------------------------------------------------


@given(JUNK, JUNK, JUNK)
def test_calibration_data(one, two, three):
    for data in (one, [one, two], (x for x in (one, two)), (one, two, three)):
        ours(Calibration, data)
        ours(Calibration, data, NETWORK)
    ours(fw.join_inputs, one, two)
    batches = ours(fw.calibration_batches, one, two)
    ours(list, batches) if batches is not None else None
    ours(NETWORK, one)
    ours(pack, one)


@given(
    st.dictionaries(st.sampled_from(["W0", "b0", "W1", "b1", "activations", "network", "x"]), JUNK)
)
def test_arrays_by_name(arrays):
    network = ours(fw.from_npz, arrays)
    assert network is None or isinstance(network, Network)


@given(JUNK, JUNK)
def test_files_of_arrays(tmp_path_factory, one, two):
    path = tmp_path_factory.mktemp("junk") / "a.npz"
    for write in (fw.to_npz, lambda network, path: save_sparse(path, network)):
        ours(write, one, path)
        ours(write, NETWORK, path)
    for read in (fw.from_npz, load_sparse):
        ours(read, path)
    if not isinstance(two, (dict, int)):
        for read in (fw.from_npz, load_sparse):
            ours(read, two)


@given(
    st.sampled_from([".npz", ".onnx", ".pkl", ".joblib", ".pt", ".keras", ""]), st.binary(), JUNK
)
def test_model_files(tmp_path_factory, suffix, content, value):
    path = tmp_path_factory.mktemp("junk") / f"model{suffix}"
    for data in (
        content,
        b"PK\3\4" + content,
        pickle.dumps(value)
        if suffix == ".pkl" and not hasattr(value, "__next__") and not isinstance(value, Loud)
        else content,
    ):
        path.write_bytes(data)
        ours(read_model, path, trust=True)
        ours(inspect_model, path, trust=True)


# scikit-learn -------------------------------------------------------------------------------------


def perceptron(kind):
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    X = RNG.standard_normal((30, 4))
    maker = MLPClassifier if kind else MLPRegressor
    model = maker(hidden_layer_sizes=(3,), max_iter=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, (X[:, 0] > 0).astype(int))


MODELS = [perceptron(0), perceptron(1)]
FIELDS = [
    "coefs_", "intercepts_", "activation", "out_activation_", "n_features_in_",
    "feature_names_in_", "_optimizer", "_label_binarizer", "n_layers_", "n_outputs_",
]  # fmt: skip


@settings(max_examples=60)
@given(st.integers(0, 1), st.dictionaries(st.sampled_from(FIELDS), JUNK), JUNK, st.booleans())
def test_estimators(kind, changes, value, sparse):
    model = copy.copy(MODELS[kind])
    vars(model).update(changes)
    network = ours(fw.from_sklearn, model)
    ours(fw.calibration_inputs, model, value)
    ours(fw.to_sklearn, model, NETWORK, sparse=sparse)
    ours(fw.to_sklearn, MODELS[kind], NETWORK if network is None else network, sparse=sparse)
    for junk in (value, *changes.values()):
        ours(fw.from_sklearn, junk)
        ours(fw.to_sklearn, MODELS[kind], junk)
        ours(fw.to_sklearn, model, fw.from_sklearn(MODELS[kind]), sparse=junk)
        ours(fw.calibration_inputs, MODELS[kind], junk)


# PyTorch ------------------------------------------------------------------------------------------


def torch_parts():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    makers = [
        lambda: nn.Linear(4, 4), lambda: nn.Linear(4, 3), lambda: nn.Linear(3, 4, bias=False),
        lambda: nn.ReLU(), lambda: nn.BatchNorm1d(4), lambda: nn.Flatten(), lambda: nn.Dropout(),
        lambda: nn.Conv1d(4, 4, 1), lambda: nn.Conv2d(1, 2, 2), lambda: nn.LayerNorm(4),
        lambda: nn.Softmax(-1), lambda: nn.LSTM(4, 4), lambda: nn.Unflatten(1, (2, 2)),
        lambda: nn.MaxPool1d(2), lambda: nn.Embedding(5, 4), lambda: nn.PReLU(3),
        lambda: nn.Linear(4, 4).half(), lambda: nn.Linear(4, 4).bfloat16(),
        lambda: nn.Linear(4, 4, device="meta"), lambda: nn.LazyLinear(3),
        lambda: nn.Sequential(), lambda: nn.Bilinear(4, 4, 2), lambda: nn.Linear(4, 0),
        lambda: nn.ConvTranspose1d(4, 4, 2), lambda: nn.GRUCell(4, 4), lambda: nn.Identity(),
        lambda: nn.utils.weight_norm(nn.Linear(4, 4)), lambda: nn.Transformer(4, 1, 1, 1, 4),
        lambda: nn.EmbeddingBag(5, 4),
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
    ]  # fmt: skip
    return torch, makers


@settings(max_examples=40)
@given(data=st.data(), record=st.booleans())
def test_modules(data, record):
    torch, makers = torch_parts()
    chosen = data.draw(st.lists(st.integers(0, len(makers) - 1), min_size=1, max_size=4))
    module = torch.nn.Sequential(*(makers[number]() for number in chosen))
    shape = data.draw(st.sampled_from([(4,), (4, 4), (1, 4), (1, 4, 4), (3,), (4, 0)]) | JUNK)
    opaque = data.draw(st.just(()) | st.sampled_from([["0"], ["1", "2"], ["*"], "0"]) | JUNK)
    given_ = data.draw(st.booleans())
    settings_ = {"example": torch.ones(3, 4)} if given_ else {"input_shape": shape}
    network = ours(fw.from_torch, module, **settings_, opaque=opaque, record=record)
    if network is not None:
        written = fw.to_torch(module, network)
        assert type(written) is type(module)
        zeros = {layer.name: (0 * layer.W, layer.b) for layer in network.layers}
        ours(fw.to_torch, module, network.replace(zeros))
    ours(fw.to_torch, module, NETWORK)


@settings(max_examples=40)
@given(JUNK, JUNK, JUNK)
def test_other_things_than_modules(one, two, three):
    torch, _ = torch_parts()
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    network = fw.from_torch(module)
    for junk in (one, two, three):
        ours(fw.from_torch, junk)
        ours(fw.from_torch, module, junk)
        ours(fw.from_torch, module, example=junk)
        ours(fw.from_torch, module, example=junk, record=True)
        ours(fw.from_torch, module, example=(junk, torch.ones(2, 4)))
        ours(fw.from_torch, module, (4,), record=junk)
        ours(fw.to_torch, junk, network)
        ours(fw.to_torch, module, junk)
        ours(fw.to_torch, module, network, inplace=junk)
        ours(fw.keep_zeros, junk)
        ours(fw.fine_tune, junk, [])
        ours(fw.fine_tune, module, junk, epochs=1)
        ours(fw.fine_tune, module, [(torch.ones(2, 4), torch.ones(2, 3))], epochs=two, lr=three)


# ONNX ---------------------------------------------------------------------------------------------


def onnx_model():
    parser = pytest.importorskip("onnx.parser")
    return parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x, float[3] c) => (float[N, 3] y, float[N, 3] z)
        <float[4, 3] W = {1, 0, -1, 2, 1, 0, -1, 2, 1, 0, -1, 2}>
        { z = MatMul(x, W)  s = Add(z, c)  y = Relu(s) }"""
    )


@settings(max_examples=40)
@given(JUNK, JUNK, JUNK, JUNK)
def test_arguments_of_onnx_models(tmp_path_factory, one, two, three, four):
    model = onnx_model()
    good = {"output": "y", "constants": {"c": np.ones(3)}}
    network = fw.from_onnx(model, **good)
    for junk in (one, two, three, four):
        if not isinstance(junk, (str, int)):
            ours(fw.from_onnx, junk)
            ours(fw.inspect_onnx, junk)
        ours(fw.from_onnx, model, **{**good, "output": junk})
        ours(fw.from_onnx, model, **{**good, "input": junk})
        ours(fw.from_onnx, model, **{**good, "input_shape": junk})
        ours(fw.from_onnx, model, **{**good, "constants": junk})
        ours(fw.from_onnx, model, **{**good, "constants": {"c": junk}})
        ours(fw.to_onnx, model, junk, **good)
        ours(fw.to_onnx, model, network, None, junk, **good)
        ours(fw.to_onnx, model, network, **{**good, "constants": {"c": junk}})
        ours(fw.to_onnx, model, network, **{**good, "input": junk})
        ours(fw.to_onnx, model, network, **{**good, "output": junk})
    folder = tmp_path_factory.mktemp("missing")
    with pytest.raises(OSError):
        fw.to_onnx(model, network, folder / "missing" / "a.onnx", **good)


# Keras --------------------------------------------------------------------------------------------


def keras_layers():
    keras = pytest.importorskip("keras")
    L = keras.layers
    return keras, [
        lambda: L.Dense(4), lambda: L.Dense(3, "relu"), lambda: L.Dense(4, use_bias=False),
        lambda: L.BatchNormalization(), lambda: L.Flatten(), lambda: L.Conv1D(2, 1),
        lambda: L.Conv2D(2, 1), lambda: L.LayerNormalization(), lambda: L.Softmax(),
        lambda: L.LSTM(3), lambda: L.Reshape((2, 2)), lambda: L.Embedding(5, 2),
        lambda: L.Normalization(), lambda: L.Rescaling(2.0), lambda: L.PReLU(),
        lambda: L.Dense(4, dtype="float16"), lambda: L.Dense(4, dtype="mixed_bfloat16"),
        lambda: L.Activation("tanh", dtype="float16"), lambda: L.ZeroPadding1D(1),
        lambda: L.Lambda(lambda x: x), lambda: L.GaussianNoise(0.1), lambda: L.Identity(),
        lambda: L.CategoryEncoding(5), lambda: L.Discretization([0.0, 1.0]),
        lambda: L.RepeatVector(2), lambda: L.Masking(), lambda: L.Bidirectional(L.GRU(2)),
        lambda: L.TimeDistributed(L.Dense(2)),
        lambda: L.UnitNormalization(), lambda: L.RandomFlip(), lambda: L.SpectralNormalization(
            L.Dense(4)),
    ]  # fmt: skip


@settings(max_examples=30)
@given(data=st.data())
def test_keras_models(data):
    keras, makers = keras_layers()
    chosen = data.draw(st.lists(st.integers(0, len(makers) - 1), min_size=1, max_size=3))
    shape = data.draw(st.sampled_from([(4,), (4, 4), (2, 2, 1), (None, 4), ()]))
    dtype = data.draw(st.sampled_from(["float32", "int32", "float16", "bool"]))
    try:
        model = keras.Sequential(
            [keras.Input(shape, dtype=dtype), *(makers[number]() for number in chosen)]
        )
        model(np.zeros((2, *(3 if n is None else n for n in shape)), dtype))
    except Exception:
        return  # Keras itself has no such model.
    names = [layer.name for layer in model.layers]
    opaque = data.draw(st.just(()) | st.sampled_from([names[:1], names[-1:], ["*"]]) | JUNK)
    network = ours(fw.from_keras, model, opaque=opaque)
    if network is not None:
        assert type(fw.to_keras(model, network)) is type(model)
    ours(fw.from_keras, model, data.draw(JUNK))
    ours(fw.to_keras, model, NETWORK)


@settings(max_examples=20)
@given(JUNK, JUNK)
def test_other_things_than_keras_models(one, two):
    keras, _ = keras_layers()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    for junk in (one, two):
        ours(fw.from_keras, junk)
        ours(fw.from_keras, model, junk)
        ours(fw.from_keras, model, opaque=junk)
        ours(fw.to_keras, junk, NETWORK)
        ours(fw.to_keras, model, junk)
        ours(fw.keep_zeros_callback, junk)

"""Keras: networks of models, pruned models back, and zeros kept in training."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from nettrim_solver import prune_network
from nettrim_solver.exceptions import NettrimError, ProblemError
from nettrim_solver.frameworks import from_keras, join_inputs, keep_zeros_callback, to_keras
from nettrim_solver.frameworks import keras as keras_page
from nettrim_solver.network import BatchNorm, Dense, Network

from .helpers import prune
from .tolerances import TOLERANCE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras, or the backend chosen for it, is missing")
L = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IMAGE = (8, 9, 3)

#: As many as the readers' own probes: JAX compiles every operation anew for another number.
SAMPLES = 4


@pytest.fixture(autouse=True, scope="module")
def no_random_beginning():
    """Begin with zeros: JAX would compile a generator for the shape of every kernel."""

    def zeros(self, shape, dtype=None, **_):
        return keras.ops.convert_to_tensor(np.zeros(shape), dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.initializers.VarianceScaling, "__call__", zeros)
        yield


class Doubled(L.Dense):
    """A dense layer that computes something else."""

    def call(self, inputs):
        return super().call(2 * inputs)


class Renamed(L.Dense):
    """A dense layer by another name."""


def chain(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def functional(shape, build):
    x = keras.Input(shape)
    return keras.Model(x, build(x))


def residual(x):
    x = L.Conv2D(4, 3, padding="same", use_bias=False)(x)
    y = L.Activation("relu")(L.BatchNormalization()(x))
    y = L.BatchNormalization(scale=False)(L.Conv2D(4, 3, padding="same", groups=2)(y))
    x = L.ReLU()(L.Add()([x, y]))
    y = L.BatchNormalization(center=False)(L.Conv2D(4, 1, use_bias=False)(x))
    return L.Dense(3)(L.GlobalAveragePooling2D()(keras.activations.relu(x + y)))


def operations(x):
    y = keras.ops.relu6(L.Dense(3)(x) + L.Dense(3)(x))
    return keras.ops.softmax(L.Dense(2)(y))


def padded(x):
    x = L.Conv2D(4, 3, strides=2, activation="relu")(L.ZeroPadding2D(((1, 2), (0, 1)))(x))
    x = L.MaxPooling2D(3, 1)(L.ZeroPadding2D(1)(x))
    x = L.AveragePooling2D(2, 2)(L.ZeroPadding2D((1, 0))(x))
    x = L.DepthwiseConv2D(3, padding="same", activation="gelu")(L.ZeroPadding2D(1)(x))
    return L.Dense(2, activation="softmax")(L.GlobalMaxPooling2D()(x))


def scaled(x):
    return L.Dense(2)(1 - 2 * (x / 3.0 - 0.5) * np.array([1.0, 2, 3, 4]) + 1)


def nested(x):
    inner = chain((4,), L.Dense(5, "tanh", name="dense"), L.BatchNormalization(name="norm"))
    return L.Dense(2, name="dense")(keras.Sequential([inner, L.Dense(3)], name="outer")(x))


def adapted(x):
    layer = L.Normalization(axis=-1, mean=[1.0, -2, 0.5], variance=[4.0, 0.25, 1])
    x = L.Normalization(axis=None, mean=0.5, variance=2.0, invert=True)(layer(x))
    return L.Dense(2)(L.Flatten()(L.Rescaling([0.1, 0.2, 3], offset=[1, 0, 0])(x)))


def activated():
    given = [
        "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "tanh", "hard_tanh", "sigmoid",
        "hard_sigmoid", "silu", "softplus", "softmax", "log_softmax", "linear", None,
    ]  # fmt: skip
    layers = [
        L.ReLU(), L.ReLU(6), L.ReLU(2.5), L.ReLU(negative_slope=0.3), L.LeakyReLU(0.1), L.PReLU(),
        L.ELU(0.7), L.Softmax(), L.Softmax(axis=(-1,)), L.Dropout(0.5),
    ]  # fmt: skip
    extra = {
        f"activation {name}": lambda name=name: chain((5,), L.Dense(6, name), L.Dense(2))
        for name in given
    }
    for layer in layers:
        extra[f"layer {layer.name}"] = lambda layer=layer: chain(
            (5,), L.Dense(6), type(layer).from_config(layer.get_config()), L.Dense(2)
        )
    return extra


#: Models to read.
MODELS = {
    **activated(),
    "approximate gelu": lambda: functional(
        (4,), lambda x: L.Dense(2)(keras.activations.gelu(L.Dense(3)(x), approximate=True))
    ),
    "operations": lambda: functional((4,), operations),
    "layer as activation": lambda: chain((4,), L.Dense(3, activation=L.LeakyReLU(0.3)), L.Dense(2)),
    "subclass": lambda: chain((4,), Renamed(3, use_bias=False), L.Dense(2)),
    "images": lambda: chain(
        IMAGE,
        L.Conv2D(6, (3, 2), strides=(2, 1), activation="relu"),
        L.Conv2D(6, 3, padding="same", dilation_rate=2, groups=3, use_bias=False),
        L.BatchNormalization(), L.PReLU(shared_axes=[1, 2]), L.SpatialDropout2D(0.2),
        L.MaxPooling2D(2, padding="same"), L.AveragePooling2D(2, 1, padding="same"),
        L.Softmax(axis=2), L.Flatten(), L.Dense(4),
    ),
    "strides": lambda: chain(
        IMAGE, L.Conv2D(4, 3, strides=2, padding="same"), L.MaxPooling2D(3, 2), L.Softmax()
    ),
    "shapes": lambda: chain(
        IMAGE, L.Permute((3, 1, 2)), L.Reshape((9, -1)), L.Dense(5, "relu"), L.Reshape((3, 3, 5)),
        L.Dense(4), L.BatchNormalization(), L.Conv2D(2, 2), L.Reshape((-1,)), L.Dense(2),
    ),
    "depthwise": lambda: chain(
        IMAGE, L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu"), L.BatchNormalization(),
        L.SeparableConv2D(5, 3, depth_multiplier=2, padding="same", activation="tanh"),
        L.GlobalAveragePooling2D(keepdims=True), L.Flatten(), L.Dense(2),
    ),
    "sequences": lambda: chain(
        (24, 3), L.Conv1D(6, 3, strides=2, padding="same", use_bias=False), L.BatchNormalization(),
        L.ReLU(), L.MaxPooling1D(2), L.Conv1D(4, 3, padding="causal", dilation_rate=2, groups=2),
        L.ZeroPadding1D((2, 1)), L.SeparableConv1D(4, 2), L.AveragePooling1D(2, 1),
        L.DepthwiseConv1D(2), L.PReLU(shared_axes=[1]), L.Dense(5),
        L.GlobalAveragePooling1D(), L.Dense(3),
    ),
    "sequences out": lambda: chain((9, 3), L.Conv1D(4, 2), L.Softmax(axis=1)),
    "residual": lambda: functional(IMAGE, residual),
    "padded": lambda: functional(IMAGE, padded),
    "scaled": lambda: functional((4,), scaled),
    "nested": lambda: functional((4,), nested),
    "adapted": lambda: functional(IMAGE, adapted),
}  # fmt: skip


def made(name, seed=0):
    """A model of the table with weights as after training, and samples."""
    keras.utils.set_random_seed(seed)
    model = MODELS[name]()
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype == "float32":
            low = 0.1 if "variance" in variable.path or "alpha" in variable.path else -1.0
            variable.assign(rng.uniform(low, 1.0, variable.shape))
    return model, rng.standard_normal((SAMPLES, *model.input_shape[1:])).astype("float32")


def outputs(model, samples):
    return keras.ops.convert_to_numpy(model(samples, training=False))


def assert_close(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= TOLERANCE["network_single"] * scale


def thinned(network):
    """Half of the weights gone, and other intercepts, as a refit gives them."""
    return network.replace({
        layer.name: (
            np.where(np.abs(layer.W) < np.median(np.abs(layer.W)), 0, layer.W * 1.1),
            None if layer.b is None else layer.b + 0.1,
        )
        for layer in network.layers
    })  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name):
    model, samples = made(name)
    before = model.get_weights()
    network = from_keras(model)
    assert_close(network(samples), outputs(model, samples))
    for folded in (network, network.folded()):
        pruned = thinned(folded)
        result = to_keras(model, pruned)
        assert_close(outputs(result, samples), pruned(samples))
        again = from_keras(result)
        for layer in pruned.layers:
            np.testing.assert_array_equal(again.layer(layer.name).W == 0, layer.W == 0)
    assert [layer.name for layer in result.layers] == [layer.name for layer in model.layers]
    for old, mine, new in zip(before, model.get_weights(), result.get_weights(), strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        np.testing.assert_array_equal(old, mine)


def test_names_are_those_of_the_model():
    model, _ = made("nested")
    names = [layer.name for layer in from_keras(model).layers]
    inner = model.get_layer("outer").layers[0].name
    assert names[0] == f"outer/{inner}/dense" and names[-1] == "dense"


def test_images_stay_in_the_order_of_the_layers():
    # Convolution to convolution needs no transposition; Flatten needs Keras's order.
    model, _ = made("images")
    kinds = [op.kind for op in from_keras(model).operations]
    assert kinds[0] == "transpose" and kinds.count("transpose") == 2
    assert kinds[-3:] == ["transpose", "flatten", "dense"]


def test_prune_network_and_a_saved_file(tmp_path):
    model, samples = made("residual")
    result = prune(from_keras(model), samples, steps="magnitude", sparsity=0.6)
    assert sum(isinstance(op, BatchNorm) for op in result.network.operations) < 3
    pruned = to_keras(model, result.network)
    pruned.save(tmp_path / "pruned.keras")
    loaded = keras.models.load_model(tmp_path / "pruned.keras")
    assert_close(outputs(loaded, samples), result.network(samples))
    zeros = sum(int((w == 0).sum()) for w in loaded.get_weights() if w.ndim > 1)
    assert zeros == result.network.n_weights - result.network.nnz > 0


def test_predict_is_what_the_network_computes():
    model, samples = made("images")
    assert_close(from_keras(model)(samples), model.predict(samples, verbose=0))


def test_channels_that_a_normalisation_switches_off():
    model, samples = made("images")
    (norm,) = (layer for layer in model.layers if isinstance(layer, L.BatchNormalization))
    norm.gamma.assign(np.r_[0, np.ones(5)])
    network = from_keras(model).folded()
    assert_close(outputs(to_keras(model, network), samples), network(samples))


def test_open_sizes_are_given():
    model = chain((None, None, 3), L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(2))
    assert from_keras(model, (8, 9, 3)).input_shape == IMAGE
    with pytest.raises(ProblemError, match=r"input_shape must be given.*\(None, None, 3\)"):
        from_keras(model)
    for shape in ((8, 9, 4), (8, 3), (8, 9, -1), 3):
        with pytest.raises(ProblemError, match="input_shape must be the shape of one sample"):
            from_keras(model, shape)


def test_channels_first():
    model = chain(
        (3, 8, 9),
        L.Conv2D(4, 3, data_format="channels_first", padding="same", activation="relu"),
        L.BatchNormalization(axis=1),
        L.Flatten(data_format="channels_first"), L.Dense(2),
    )  # fmt: skip
    samples = np.random.default_rng(0).standard_normal((5, 3, 8, 9)).astype("float32")
    network = from_keras(model)
    assert_close(network(samples), outputs(model, samples))
    pruned = thinned(network.folded())
    assert_close(outputs(to_keras(model, pruned), samples), pruned(samples))


@pytest.mark.skipif(keras.backend.backend() == "numpy", reason="this backend does not train")
def test_zeros_stay_in_training():
    model, samples = made("residual")
    result = prune(from_keras(model), samples, steps="magnitude", sparsity=0.5)
    pruned = to_keras(model, result.network)
    pruned.compile(keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01), "mse")
    before = [w for w in pruned.get_weights() if w.ndim > 1]
    callback = keep_zeros_callback(pruned)
    assert sum(callback.zeros.values()) == sum(int((w == 0).sum()) for w in before)
    targets = np.ones((len(samples), 3), "float32")
    pruned.fit(samples, targets, batch_size=8, epochs=2, verbose=0, callbacks=[callback])
    after = [w for w in pruned.get_weights() if w.ndim > 1]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old == 0, new == 0)
        assert np.any(old != new)
    pruned.fit(samples, targets, batch_size=30, verbose=0)
    assert any(np.any(w[old == 0]) for old, w in zip(before, pruned.get_weights(), strict=False))


def partly(x):
    x = L.LayerNormalization(name="norm")(L.Dense(6, "relu", name="first")(x))
    y = keras.Sequential([L.Dense(6, name="dense"), L.Dropout(0.5)], name="inner")(keras.ops.sin(x))
    return L.Dense(2, name="last")(x + y)


@pytest.mark.parametrize("names", [["norm", "inner", "sin*"], ["LayerNormalization", "Sin", "in*"]])
def test_layers_that_are_left_to_keras(names):
    model = random(functional((4,), partly))
    samples = np.random.default_rng(1).standard_normal((SAMPLES, 4)).astype("float32")
    network = from_keras(model, opaque=names)
    assert [layer.name for layer in network.layers] == ["first", "last"]
    assert sum(op.kind == "opaque" for op in network.operations) == 3
    assert_close(network(samples), outputs(model, samples))
    result = prune(network, samples, steps="magnitude", sparsity=0.5)
    pruned = to_keras(model, result.network)
    assert_close(outputs(pruned, samples), result.network(samples))
    for name, same in (("inner", True), ("norm", True), ("first", False), ("last", False)):
        layers = (one.get_layer(name).get_weights() for one in (model, pruned))
        assert same == all(np.array_equal(*pair) for pair in zip(*layers, strict=True))


def several_inputs(dictionary=False):
    """An image, numbers, and words that are looked up, merged in several ways."""
    image, numbers = keras.Input((5, 6, 2), name="image"), keras.Input((4,), name="numbers")
    words = keras.Input((7,), dtype="int32", name="words")
    features = L.Conv2D(3, 3, activation="relu")(image)
    features = L.Concatenate()([features, L.Conv2D(2, 3)(image)])
    found = L.Dense(5, "relu")(L.Embedding(20, 3)(words))
    pair = [keras.Input((4,)), keras.Input((5,))]
    joint = L.Dense(4, "tanh", name="joint")(keras.ops.concatenate(pair, axis=-1))
    both = keras.Model(pair, joint, name="both")
    inner = both([numbers, L.GlobalAveragePooling1D()(found)])
    output = L.Dense(2)(L.Concatenate(axis=1)([inner, L.Flatten()(features), L.Flatten()(found)]))
    inputs = [words, image, numbers]
    return keras.Model({one.name: one for one in inputs} if dictionary else inputs, output)


@pytest.mark.parametrize("dictionary", [False, True])
def test_models_with_several_inputs(dictionary):
    model = random(several_inputs(dictionary))
    rng = np.random.default_rng(1)
    given = {
        "image": rng.standard_normal((SAMPLES, 5, 6, 2)).astype("float32"),
        "numbers": rng.standard_normal((SAMPLES, 4)).astype("float32"),
        "words": rng.integers(0, 20, (SAMPLES, 7)),
    }
    X = join_inputs(*(given[one.name] for one in model.inputs))
    ordered = given if dictionary else [given[one.name] for one in model.inputs]
    network = from_keras(model)
    assert_close(network(X), outputs(model, ordered))
    assert "both/joint" in {layer.name for layer in network.layers}
    pruned = thinned(network)
    result = to_keras(model, pruned)
    assert_close(outputs(result, ordered), pruned(X))
    assert [one.name for one in result.inputs] == [one.name for one in model.inputs]
    assert from_keras(model, [tuple(one.shape[1:]) for one in model.inputs]).input_shape == (71,)


def test_words_are_looked_up():
    model = random(chain((6,), L.Embedding(9, 4, name="table"), L.Conv1D(3, 2), L.Flatten(),
                         L.Dense(2)))  # fmt: skip
    words = np.random.default_rng(0).integers(0, 9, (SAMPLES, 6))
    network = from_keras(model)
    assert_close(network(words), outputs(model, words))
    with pytest.raises(ProblemError, match=r"'table' .* whole numbers from 0 to 8, but gets 9"):
        network(np.full((1, 6), 9))


def test_a_layer_left_to_keras_may_take_integers():
    inputs = keras.Input((6,), dtype="int32")
    found = L.Embedding(9, 4, mask_zero=True, name="table")(inputs)
    model = random(keras.Model(inputs, L.Dense(2)(found)))
    words = np.random.default_rng(0).integers(0, 9, (SAMPLES, 6))
    network = from_keras(model, opaque=["table"])
    assert_close(network(words), outputs(model, words))
    pruned = thinned(network)
    assert_close(outputs(to_keras(model, pruned), words), pruned(words))
    # Nothing looks at the mask, so that the table may as well be the network's.
    assert_close(from_keras(model)(words), outputs(model, words))


class Own(keras.Model):
    def call(self, inputs):
        return inputs


def reading(build, shape=(4,)):
    return lambda: from_keras(functional(shape, build))


def masked(x):
    return L.Dense(2)(L.GlobalAveragePooling1D()(L.Embedding(5, 3, mask_zero=True)(x)))


def shared(x):
    layer = L.Dense(4, name="twice")
    return layer(layer(x))


def two_outputs(x):
    return [L.Dense(2)(x), L.Dense(3)(x)]


def pooled(size):
    return chain((size, size, 3), L.Conv2D(2, 3, name="c"), L.GlobalAveragePooling2D())


def mixed():
    return from_keras(chain((4,), L.Dense(3, dtype="mixed_bfloat16")))


BAD = {
    "no model": (lambda: from_keras(3), r"keras.Model of Keras 3, but was builtins.int"),
    "not built": (lambda: from_keras(keras.Sequential([L.Dense(3)])), "must be built"),
    "own call": (lambda: from_keras(Own()), r"model Own must be Sequential or functional"),
    "two outputs": (reading(two_outputs), "one output, but has 2"),
    "unknown layer": (reading(lambda x: L.LSTM(3, name="memory")(x), (4, 3)),
                      r"layer 'memory' \(LSTM\).*not supported.*Conv2D.*opaque=\['memory'\]"),
    "unknown function": (reading(lambda x: keras.ops.sin(x)), r"\(Sin\).*not supported"),
    "unknown activation": (reading(lambda x: L.Dense(3, "softsign", name="d")(x)),
                           r"'d' \(Dense\): activation softsign is not supported"),
    "own activation": (reading(lambda x: L.Dense(3, lambda z: -z)(x)), "activation <lambda>"),
    "own call of a layer": (reading(lambda x: Doubled(3, name="d")(x)), r"'d' \(Doubled\)"),
    "no such layer": (lambda: from_keras(chain((4,), L.Dense(3, name="d")), opaque=["LSTM"]),
                      r"nothing is called 'LSTM': the parts are \['d'\]"),
    "opaque with two inputs": (
        lambda: from_keras(functional((4,), lambda x: L.Concatenate(name="c")([x, x])),
                           opaque=["c"]),
        "must take one tensor"),
    "opaque with several outputs": (
        lambda: from_keras(functional((4, 3), lambda x: L.LSTM(3, return_state=True)(x)[0]),
                           opaque=["LSTM"]),
        "must return one tensor"),
    "concatenated samples": (reading(lambda x: L.Dense(2)(keras.ops.concatenate([x, x], 0))),
                             "axis must be one of a sample"),
    "masks": (reading(masked), "masks, which mask_zero=True makes"),
    "several shapes": (lambda: from_keras(several_inputs(), (4,)), r"\[\(7,\), .*but was \(4,\)"),
    "no network": (lambda: to_keras(chain((4,), L.Dense(3)), 3), "network must be a Network"),
    "other inputs": (lambda: to_keras(chain((4,), L.Dense(3, name="d")),
                                      from_keras(random(chain((5,), L.Dense(3, name="d"))))),
                     r"'d' has weights of shape \(4, 3\) in the model and .* \(5, 3\)"),
    "other images": (lambda: to_keras(pooled(9), from_keras(random(pooled(8)))),
                     r"samples of shape \(8, 8, 3\) where the model takes \(9, 9, 3\)"),
    "product": (reading(lambda x: L.Multiply()([x, x])), "only the sum is supported"),
    "shared": (reading(shared), r"'twice' \(Dense\).*used once"),
    "training": (reading(lambda x: L.Dropout(0.5)(x, training=True)), "training=True"),
    "threshold": (reading(lambda x: L.ReLU(threshold=1.0)(x)), "threshold must be 0"),
    "slopes by position": (
        lambda: from_keras(random(chain(IMAGE, L.Conv2D(2, 3), L.PReLU()))), "shared_axes"),
    "zeros before a dense layer": (reading(lambda x: L.Dense(2)(L.ZeroPadding2D(1)(x)), IMAGE),
                                   "only convolutions and poolings"),
    "zeros before a maximum": (
        reading(lambda x: L.MaxPooling2D(2)(L.ZeroPadding2D(1)(x)), IMAGE), "behind a ReLU"),
    "zeros at the end": (reading(lambda x: L.ZeroPadding2D(1)(x), IMAGE), "must not end"),
    "mixed precision": (mixed, r"\(Dense\).*bfloat16"),
    "half": (lambda: from_keras(chain((4,), L.Dense(3, dtype="bfloat16"))), "but are bfloat16"),
    "other layers": (lambda: to_keras(chain((4,), L.Dense(3)), Network([Dense(np.ones((4, 3)))])),
                     "must have the layers"),
    "intercept": (
        lambda: to_keras(chain((4,), L.Dense(3, use_bias=False, name="d")),
                         Network([Dense(np.ones((4, 3)), np.ones(3), name="d")])),
        "has an intercept"),
    "no zeros": (lambda: keep_zeros_callback(random(chain((4,), L.Dense(3)))),
                 "weights that are zero"),
}  # fmt: skip


def random(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused(what):
    make, message = BAD[what]
    with pytest.raises(NettrimError) as caught:
        make()
    assert re.search(message, str(caught.value)), str(caught.value)


def test_another_models_network_is_refused():
    model = random(chain((4,), L.Dense(3, "relu", name="d")))
    other = from_keras(random(chain((4,), L.Dense(3, "tanh", name="d"))))
    with pytest.raises(ProblemError, match="outputs differ"):
        to_keras(model, other)


def test_the_five_lines_of_the_docstring():
    code = keras_page.__doc__.partition("::\n")[2].partition("Keras itself")[0]
    lines = [line.strip() for line in code.splitlines() if line.strip()]
    assert len(lines) <= 5
    if keras.backend.backend() == "numpy":
        lines = lines[:3]
    model = random(chain((4,), L.Dense(6, "relu"), L.Dense(2)))
    X = np.random.default_rng(0).standard_normal((60, 4)).astype("float32")
    names = {"model": model, "X": X, "y": X[:, :2], "prune_network": prune_network}
    names |= vars(keras_page)
    exec("\n".join(lines), names)
    assert any(np.any(w == 0) for w in names["pruned"].get_weights() if w.ndim > 1)


@pytest.mark.skipif(keras.backend.backend() == "numpy", reason="this backend does not train")
def test_the_code_of_the_page():
    page = (Path(__file__).parents[1] / "docs" / "frameworks.md").read_text()
    section = page.partition("\n## Keras\n")[2]
    names = {}
    for block in re.findall(r"^```py\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert sum(int((w == 0).sum()) for w in names["pruned"].get_weights() if w.ndim > 1) > 900


# Inputs and layers of other kinds -----------------------------------------------------------------


def weighted(model):
    """Give the dense layers and convolutions of a model, and of those inside, random weights."""
    rng = np.random.default_rng(2)
    for layer in model._flatten_layers():
        if isinstance(layer, (L.Dense, L.Conv2D)):
            layer.set_weights([rng.standard_normal(w.shape) for w in layer.get_weights()])
    return model


def normalised(**settings):
    layer = L.Normalization(**settings)
    layer.adapt(np.random.default_rng(0).normal(2, 3, (100, 4)))
    return layer


def nested_normalisation():
    inner = functional((4,), lambda x: normalised()(x))
    return functional((4,), lambda x: L.Dense(3)(inner(x)))


NORMALISED = {
    "sequential": lambda: chain((4,), normalised(), L.Dense(3)),
    "functional": lambda: functional((4,), lambda x: L.Dense(3)(normalised(axis=-1)(x))),
    "one mean": lambda: chain((4,), normalised(axis=None), L.Dense(3)),
    "inverted": lambda: chain((4,), L.Dense(4), normalised(invert=True), L.Dense(3)),
    "nested": nested_normalisation,
    "given": lambda: chain((4,), L.Normalization(mean=2.0, variance=9.0), L.Dense(3)),
}


@pytest.mark.parametrize("opaque", [(), ("Normalization",)])
@pytest.mark.parametrize("kind", NORMALISED)
def test_normalisations_keep_what_they_learned(kind, opaque):
    if opaque and kind == "nested":
        opaque = ("*/normalization*",)
    model = weighted(NORMALISED[kind]())
    X = np.random.default_rng(1).normal(2, 3, (SAMPLES, 4)).astype("f")
    network = from_keras(model, opaque=opaque)
    assert_close(network(X), outputs(model, X))
    pruned = thinned(network)
    written = to_keras(model, pruned)
    assert_close(outputs(written, X), pruned(X))
    for old, new in zip(model.non_trainable_weights, written.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())


DTYPES = ["uint8", "int8", "int32", "int64", "bool", "float16", "bfloat16", "float64"]


@pytest.mark.filterwarnings("ignore")  # JAX says that it has no 64 bits.
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_of_any_dtype_are_checked_on_numbers_that_they_have(dtype, several):
    images = keras.Input((4, 4, 1), dtype=dtype)
    found = L.Flatten()(L.Conv2D(2, 3, activation="relu")(L.Rescaling(1 / 16)(images)))
    numbers = keras.Input((3,))
    inputs = [images, numbers] if several else images
    found = L.Concatenate()([found, numbers]) if several else found
    model = weighted(keras.Model(inputs, L.Dense(3)(found)))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2 if dtype == "bool" else 100, (SAMPLES, 4, 4, 1)).astype("f")
    others = rng.random((SAMPLES, 3)).astype("f")
    given = keras.ops.cast(pixels, dtype)
    given = [given, keras.ops.convert_to_tensor(others)] if several else given
    X = join_inputs(pixels, others) if several else pixels
    network = thinned(from_keras(model))
    np.testing.assert_allclose(
        network(X), np.asarray(to_keras(model, network)(given)), rtol=1e-4, atol=1e-3
    )


def test_a_part_in_half_precision_is_compared_with_its_own_rounding():
    model = random(chain((4,), L.Dense(5), L.Activation("tanh", dtype="float16"), L.Dense(3)))
    network = thinned(from_keras(model))
    to_keras(model, network)
    last = network.layers[-1]
    changed = network.replace({last.name: (1.2 * last.W, last.b)})
    with pytest.raises(NettrimError, match="differ by"):
        keras_page._check_outputs(to_keras(model, network), changed, ((4,),))


@keras.saving.register_keras_serializable("tests")
class Logarithm(L.Layer):
    def call(self, x):
        return keras.ops.log(x)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("first", [False, True])
def test_a_layer_that_takes_no_negative_numbers_is_checked_on_others(first):
    layers = (Logarithm(), L.Dense(3)) if first else (L.Dense(3), Logarithm())
    model = chain((4,), *layers)
    dense = next(layer for layer in model.layers if isinstance(layer, L.Dense))
    dense.set_weights([np.abs(w) + 0.1 for w in dense.get_weights()])
    network = thinned(from_keras(model, opaque=["Logarithm"]))
    X = np.random.default_rng(0).random((SAMPLES, 4)).astype("f") + 0.1
    assert_close(outputs(to_keras(model, network), X), network(X))


def test_weights_of_layers_left_to_keras_are_listed():
    model = functional((6, 4), lambda x: L.Dense(3)(L.LSTM(5, name="memory")(x)))
    network = from_keras(model, opaque=["memory"])
    kernels = [w for w in model.get_layer("memory").get_weights() if w.ndim == 2]
    kernels[0][:2] = 0
    model.get_layer("memory").set_weights([*kernels, model.get_layer("memory").get_weights()[2]])
    network = from_keras(model, opaque=["memory"])
    zeros = sum(int((w == 0).sum()) for w in kernels)
    assert network.unpruned == {"memory": (4 * 4 * 5 + 4 * 5 * 5, zeros)} and zeros >= 40
    assert "with these" in network.summary()

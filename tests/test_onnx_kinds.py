"""ONNX: kinds of models that were refused, grew, or took all memory."""

import os
import stat
import tracemalloc
import warnings

import numpy as np
import pytest

from nettrim_solver.exceptions import NettrimError, ProblemError
from nettrim_solver.frameworks import from_onnx, inspect_onnx, to_onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from nettrim_solver.frameworks.onnx import _check_outputs  # noqa: E402
from nettrim_solver.frameworks.onnx_record import record  # noqa: E402

from .helpers import prune  # noqa: E402
from .test_onnx import Graph, N, gemm, run, samples  # noqa: E402

helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto
X = np.random.default_rng(0).standard_normal((40, 6)).astype("f")


def pruned(network, data=X):
    return prune(network, data, steps="magnitude", sparsity=0.6).network


# Half precision -----------------------------------------------------------------------------------


def with_half(place):
    """Three layers, one of which computes in half precision."""
    g, signal = Graph((N, 6)), "x"
    for number in range(3):
        if number == place:
            signal = g("Cast", signal, to=TensorProto.FLOAT16)
            signal = g("MatMul", signal, g.array(6, 6).astype(np.float16))
            signal = g("Cast", signal, to=TensorProto.FLOAT)
        else:
            signal = g("Relu", gemm(g, signal, 6, 6))
    return g.model(signal)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_node_in_half_precision_stays_and_the_others_are_pruned(place):
    model = with_half(place)
    network = from_onnx(model)
    assert len(network.layers) == 2
    (note,) = (one for one in inspect_onnx(model) if one.reason)
    assert "float16" in note.reason
    assert [*network.unpruned.values()] == [(36, 0)]
    result = pruned(network)
    found = run(to_onnx(model, result), X)
    np.testing.assert_allclose(found, result(X), atol=5e-3)
    last = network.layers[-1]
    with pytest.raises(ProblemError, match="differ by"):
        _check_outputs(record(model), network.replace({last.name: (last.W * 1.5, last.b)}))
    weights = [numpy_helper.to_array(t) for t in to_onnx(model, result).graph.initializer]
    assert sum(int((W == 0).sum()) for W in weights if W.dtype == np.float32) >= 40


def test_without_half_precision_the_check_is_as_strict_as_before():
    g = Graph((N, 6))
    model = g.model(g("Relu", gemm(g, gemm(g, "x", 6, 6), 6, 6)))
    half = g("Cast", "x", to=TensorProto.FLOAT16)  # On no way to the output.
    assert half
    network = from_onnx(g.model(model.graph.output[0].name))
    first = network.layers[0]
    changed = network.replace({first.name: (first.W * 1.002, first.b)})
    with pytest.raises(ProblemError, match="differ by"):
        _check_outputs(record(g.model(model.graph.output[0].name)), changed)


# Shared tensors -----------------------------------------------------------------------------------


def shared(kind, size=60):
    """One tensor as the weights of two layers, or of three."""
    g = Graph((N, size))
    W = g.array(size, size)
    name = g.constant(W) if kind.startswith("constant") else g.hold(W)
    other = name
    if "transposed" in kind:
        other = g("Transpose", name, perm=[1, 0])
    x = g("Relu", g("MatMul", "x", name))
    x = g("Relu", g("MatMul", x, other))
    if "three" in kind:
        x = g("Relu", g("MatMul", x, name))
    return g.model(x)


KINDS = ["initializer", "initializer three", "initializer transposed", "constant",
         "constant transposed three"]  # fmt: skip


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_unused_original_of_a_shared_tensor_stays_behind(kind, sparse):
    model = shared(kind)
    data = np.random.default_rng(1).standard_normal((30, 60)).astype("f")
    network = from_onnx(model)
    result = prune(network, data, steps="magnitude", sparsity=0.9).network
    written = to_onnx(model, result, sparse=sparse)
    onnx.checker.check_model(written, full_check=not sparse)
    np.testing.assert_allclose(run(written, data), result(data), atol=1e-4)
    dense = 4 * 60 * 60
    copies = len(network.layers)
    most = copies * (0.1 * 60 * 60 * 12 + 200) if sparse else copies * dense
    assert written.ByteSize() < most + 1500
    used = {name for node in written.graph.node for name in node.input}
    made = {name for node in written.graph.node for name in node.output}
    held = {tensor.name for tensor in written.graph.initializer}
    held |= {tensor.values.name for tensor in written.graph.sparse_initializer}
    assert held <= used and made <= used | {place.name for place in written.graph.output}


def test_what_one_of_two_layers_still_uses_stays():
    model = shared("initializer transposed")
    network = from_onnx(model)
    first = network.layers[0]
    changed = network.replace({first.name: (np.where(abs(first.W) > 0.1, first.W, 0), None)})
    written = to_onnx(model, changed)
    data = samples(network)
    np.testing.assert_allclose(run(written, data), changed(data), atol=1e-4)
    assert len(written.graph.initializer) == 2
    assert to_onnx(model, network) == onnx.load_model_from_string(model.SerializeToString())


# Outputs of scikit-learn's classifiers ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("named", [False, True])
def test_classifiers_with_a_zip_map_say_how_to_convert_them(classes, named):
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.neural_network import MLPClassifier

    y = np.digitize(X[:, 0], [-0.4, 0.4]) if classes == 3 else (X[:, 0] > 0).astype(int)
    y = np.array(["one", "two", "three"])[y] if named else y
    classifier = MLPClassifier(hidden_layer_sizes=(5,), max_iter=20, random_state=0).fit(X, y)
    model = skl2onnx.to_onnx(classifier, X[:1])
    for output in (None, "output_label", "output_probability"):
        with pytest.raises(ProblemError, match=r"options=\{'zipmap': False\}"):
            from_onnx(model, output=output)
    model = skl2onnx.to_onnx(classifier, X[:1], options={"zipmap": False})
    if not named:
        with pytest.raises(ProblemError, match="holds int64, as of labels; output='probabilities'"):
            from_onnx(model, output="label")
    network = from_onnx(model, output="probabilities")
    np.testing.assert_allclose(network(X), classifier.predict_proba(X), atol=1e-5)
    assert to_onnx(model, pruned(network), output="probabilities")


# Randomness ---------------------------------------------------------------------------------------


def noisy(g, kind, x):
    if kind == "Dropout":
        return g("Dropout", x, np.float32(0.5), np.array(True))
    if kind == "Bernoulli":
        return g("Add", x, g("Bernoulli", g("Sigmoid", x)))
    if kind.endswith("Like"):
        return g("Add", x, g(kind, x))
    return g("Add", x, g(kind, shape=[1, 4]))


@pytest.mark.parametrize(
    "kind",
    ["Dropout", "Bernoulli", "RandomNormalLike", "RandomUniformLike", "RandomNormal",
     "RandomUniform"],
)  # fmt: skip
@pytest.mark.parametrize("last", [False, True])
def test_nodes_that_draw_numbers_are_named_as_the_cause(kind, last):
    g = Graph((N, 6))
    x = gemm(g, "x", 6, 4)
    x = noisy(g, kind, x)
    x = x if last else gemm(g, x, 4, 4)
    with pytest.raises(ProblemError, match=rf"every time, but {kind}.*evaluation mode"):
        from_onnx(g.model(x))


def test_a_normalisation_in_training_mode_is_named_as_the_cause():
    g = Graph((N, 6))
    x = gemm(g, "x", 6, 4)
    ones = [np.ones(4, np.float32)] * 4
    x = g("BatchNormalization", x, *ones, outputs=3, training_mode=1)[0]
    with pytest.raises(ProblemError, match="BatchNormalization.*is in training mode"):
        from_onnx(g.model(x))


def test_randomness_that_changes_nothing_is_none():
    g = Graph((N, 6))
    x = g("Dropout", gemm(g, "x", 6, 4), np.float32(0.5), np.array(False))
    g("RandomNormal", shape=[1, 4])  # On no way to the output.
    assert len(from_onnx(g.model(x)).layers) == 1


# Outputs that are not finite ----------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["Log", "Sqrt", "Acos", "Acosh", "Atanh"])
def test_operators_that_take_no_negative_numbers_are_checked_on_others(operator):
    g = Graph((N, 6))
    signal = g("Div", "x", np.float32(1.01)) if operator == "Atanh" else "x"
    model = g.model(gemm(g, g(operator, signal), 6, 3))
    network = from_onnx(model)
    first = network.layers[0]
    to_onnx(model, network.replace({first.name: (first.W * 0.5, first.b)}))
    with pytest.raises(ProblemError, match="differ by"):
        _check_outputs(record(model), network.replace({first.name: (first.W * 0.5, first.b)}))


def test_an_output_that_is_never_finite_is_named_as_such():
    g = Graph((N, 6))
    x = g("Log", g("Sub", np.float32(-1), g("Abs", gemm(g, "x", 6, 3))))
    with pytest.raises(ProblemError, match="must give finite outputs"):
        from_onnx(g.model(x))


# Tensors elsewhere --------------------------------------------------------------------------------


def with_external(folder, kind):
    """A model whose weights lie in a file beside it, as an initializer or in a node."""
    g = Graph((N, 6))
    W = g.array(6, 4)
    model = g.model(g("MatMul", "x", g.constant(W) if kind == "Constant" else g.hold(W)))
    tensor = (
        model.graph.node[0].attribute[0].t if kind == "Constant" else model.graph.initializer[0]
    )
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return model, W


@pytest.mark.parametrize("kind", ["Constant", "initializer"])
def test_external_data_lie_beside_the_model_wherever_one_is(kind, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").mkdir()
    model, W = with_external(tmp_path / "models", kind)
    monkeypatch.chdir(tmp_path / "elsewhere")
    # A file of the same name in the working directory is another one.
    (tmp_path / "elsewhere" / "weights.bin").write_bytes(bytes(4 * W.size))
    network = from_onnx(tmp_path / "models" / "model.onnx")
    np.testing.assert_array_equal(network.layers[0].W, W)
    for source in (model, model.SerializeToString()):
        with pytest.raises(ProblemError, match="give the path"):
            from_onnx(source)
    (tmp_path / "models" / "weights.bin").unlink()
    with pytest.raises(ProblemError, match="has data elsewhere|in other files"):
        from_onnx(tmp_path / "models" / "model.onnx")


@pytest.mark.skipif(os.name != "posix", reason="modes and links are POSIX's")
def test_a_model_that_is_replaced_keeps_its_mode_and_links(tmp_path):
    g = Graph((N, 6))
    model = g.model(gemm(g, "x", 6, 4))
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "model.onnx").chmod(0o600)
    (tmp_path / "link.onnx").symlink_to("model.onnx")
    to_onnx(model, pruned(from_onnx(model)), tmp_path / "link.onnx")
    assert (tmp_path / "link.onnx").is_symlink()
    assert stat.S_IMODE((tmp_path / "model.onnx").stat().st_mode) == 0o600
    assert from_onnx(tmp_path / "model.onnx").sparsity > 0.5


# Memory -------------------------------------------------------------------------------------------


def sparse_model(dims):
    g = Graph((N, dims[0]))
    model = g.model(g("MatMul", "x", "W"), shape=[N, dims[1]])
    tensor = helper.make_sparse_tensor(
        helper.make_tensor("W", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("i", TensorProto.INT64, [1], [0]),
        dims,
    )
    model.graph.sparse_initializer.append(tensor)
    return model


def expanding(kind, size):
    g = Graph((N, 4))
    shape = np.array([1, size])
    if kind == "ConstantOfShape":
        big = g("ConstantOfShape", shape)
    elif kind == "Tile":
        big = g("Tile", np.ones((1, 1), np.float32), shape)
    elif kind == "Expand":
        big = g("Expand", np.ones((1, 1), np.float32), shape)
    elif kind == "Range":
        big = g("Range", np.float32(0), np.float32(size), np.float32(1))
    elif kind == "Pad":
        big = g("Pad", np.ones((1, 1), np.float32), np.array([0, 0, 0, size]))
    elif kind == "OneHot":
        big = g("OneHot", np.array([0]), np.array(size), np.array([0, 1], np.float32))
    else:
        big = g("Resize", np.ones((1, 1), np.float32), "", "", shape)
    signal = gemm(g, "x", 4, 3)
    return g.model(g("Add", signal, g("ReduceMean", big, keepdims=0)))


def assert_refused_cheaply(make):
    content = make().SerializeToString()
    assert len(content) < 1000
    tracemalloc.start()
    try:
        with pytest.raises(NettrimError, match="must fit into memory"):
            from_onnx(content)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dims", [[4, 10**7], [4, 250_000_000], [2**31, 2**31]])
def test_sparse_tensors_of_few_bytes_take_no_memory(dims):
    assert_refused_cheaply(lambda: sparse_model(dims))
    assert sparse_model([4, 100]).ByteSize() < 1000 and from_onnx(sparse_model([4, 100])).layers


@pytest.mark.parametrize(
    "kind", ["ConstantOfShape", "Tile", "Expand", "Range", "Pad", "OneHot", "Resize"]
)
def test_operators_that_make_much_of_little_take_no_memory(kind):
    assert_refused_cheaply(lambda: expanding(kind, 10**9))
    assert from_onnx(expanding(kind, 50)).layers


def test_signals_far_larger_than_the_model_take_no_memory():
    g = Graph((N, 1, 3000, 3000))
    x = "x"
    for channels in (1, 16, 16, 16):
        x = g("Conv", x, g.array(16, channels, 1, 1))
    with pytest.raises(ProblemError, match="must fit into memory"):
        from_onnx(g.model(x))


def test_warnings_of_numpy_stay_inside():
    g = Graph((N, 6))
    model = g.model(gemm(g, g("Log", g("MatMul", "x", g.array(6, 4, least=0.1))), 4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_onnx(model)

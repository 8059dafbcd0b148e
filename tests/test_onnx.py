"""ONNX: models of every shape, against onnxruntime before pruning and after."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from nettrim_solver.exceptions import ProblemError
from nettrim_solver.frameworks import from_onnx, inspect_onnx, to_npz, to_onnx
from nettrim_solver.frameworks.onnx_layers import LAYERS
from nettrim_solver.frameworks.onnx_operations import ARITHMETIC, READERS
from nettrim_solver.network import BatchNorm, Conv2d, Dense, Network
from nettrim_solver.storage import save_sparse

from .helpers import prune
from .tolerances import TOLERANCE

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

N = "samples"


@dataclass
class Graph:
    """A model as a test writes it: arrays among the inputs of a node become initializers."""

    shape: tuple
    dtype: type = np.float32
    opset: int = 20
    ir: int = 9
    domains: tuple = ()
    functions: tuple = ()
    nodes: list = field(default_factory=list)
    initializers: list = field(default_factory=list)
    rng: object = field(default_factory=lambda: np.random.default_rng(1))

    def array(self, *shape, least=None):
        """Random numbers, or positive ones."""
        numbers = self.rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
        return (numbers if least is None else least + np.abs(numbers)).astype(self.dtype)

    def hold(self, array):
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def __call__(self, operator, *inputs, outputs=1, **attributes):
        names = [v if isinstance(v, str) else self.hold(v) for v in inputs]
        made = [f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        number = len(self.nodes)
        name = f"{operator.lower()}_{number}" if number % 2 else ""
        self.nodes.append(helper.make_node(operator, names, made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, array):
        return self("Constant", value=numpy_helper.from_array(np.asarray(array)))

    def model(self, output, inputs=(), shape=None):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        places = [helper.make_tensor_value_info("x", kind, self.shape), *inputs]
        result = helper.make_tensor_value_info(output, kind, shape)
        graph = helper.make_graph(self.nodes, "net", places, [result], self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(name, 1) for name in self.domains]
        made = helper.make_model(
            graph, opset_imports=opsets, ir_version=self.ir, functions=self.functions
        )
        return onnx.shape_inference.infer_shapes(made, strict_mode=True)


# Layers ------------------------------------------------------------------------------------------


def gemm(g, x, n_in, n_out):
    return g("Gemm", x, g.array(n_in, n_out), g.array(n_out))


def gemms(g):
    """transB, alpha, beta; C as a row, one number, or missing."""
    x = g("Gemm", "x", g.array(6, 5), g.array(6), transB=1)
    x = g("Relu", x)
    x = g("Gemm", x, g.array(6, 7), g.array(1, 7), alpha=0.5, beta=2.0)
    x = g("Relu", x)
    x = g("Gemm", x, g.array(7, 4), g.array(1))
    return g("Gemm", g("Tanh", x), g.array(3, 4), transB=1, alpha=-2.0)


def products(g):
    x = g("MatMul", "x", g.array(5, 6))
    x = g("Relu", g("Add", x, g.array(6)))
    x = g("Add", g.array(1, 4), g("MatMul", x, g.array(6, 4)))
    x = g("MatMul", g("Sigmoid", x), g.array(4, 3))
    return g("Add", x, np.float32([0.7]))


def columns(g):
    """W on the left, as in networks of column vectors."""
    x = g("Add", g("MatMul", g.array(6, 5), "x"), g.array(6, 1))
    x = g("MatMul", g.array(4, 6), g("Relu", x))
    return g("Add", x, g.array(1, 4, 1))


def vectors(g):
    """Samples without an axis of their own."""
    x = g("Relu", g("Add", g("MatMul", g.array(6, 5), "x"), g.array(6)))
    return g("Add", g("MatMul", x, g.array(6, 3)), g.array(3))


def rows(g):
    x = g("Relu", g("Add", g("MatMul", "x", g.array(5, 6)), g.array(6)))
    return gemm(g, g("Flatten", x), 6, 3)


def tokens(g):
    """Linear layers on the last of several axes."""
    x = g("Relu", g("Add", g("MatMul", "x", g.array(5, 6)), g.array(6)))
    x = g("MatMul", g("Softplus", g("MatMul", x, g.array(6, 6))), g.array(6, 4))
    x = g("Mul", x, g.array(4))
    return g("Add", g("MatMul", g.array(2, 3), x), g.array(2, 1))


def merged(g):
    """Samples and positions in one axis, as exporters write it."""
    x = g("Reshape", "x", np.array([-1, 5]))
    x = g("Relu", g("Gemm", x, g.array(5, 6), g.array(6)))
    x = g("Add", g("MatMul", x, g.array(6, 4)), g.array(4))
    return g("Reshape", x, np.array([-1, 3, 4]))


def convolutions(g):
    x = g("Conv", "x", g.array(6, 3, 3, 2), g.array(6), pads=[1, 0, 2, 1], strides=[2, 1])
    x = g("Conv", g("Relu", x), g.array(4, 3, 3, 3), group=2, dilations=[1, 2])
    x = g("Relu", g("Add", x, g.array(4, 1, 1)))
    x = g("Conv", x, g.array(4, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    x = g("Conv", x, g.array(4, 4, 2, 2), g.array(4), auto_pad="SAME_LOWER")
    x = g("Conv", x, g.array(3, 4, 2, 2), g.array(3), auto_pad="VALID", kernel_shape=[2, 2])
    return g("Add", x, np.float32([[[0.5]]]))


def signals_of_time(g):
    """1-d convolutions, normalised and pooled."""
    x = g("Conv", "x", g.array(4, 3, 3), pads=[1, 1], strides=[1])
    x = g("BatchNormalization", x, *statistics(g, 4))
    x = g("PRelu", x, g.array(4, 1, least=0.1))
    skip = g("Conv", x, g.array(4, 1, 3), group=4, auto_pad="SAME_UPPER")
    x = g("MaxPool", g("Add", x, skip), kernel_shape=[2], strides=[2])
    x = g("AveragePool", x, kernel_shape=[3], pads=[1, 1], count_include_pad=1)
    x = g("GlobalAveragePool", g("Clip", x, np.float32(0), np.float32(6)))
    return gemm(g, g("Squeeze", x, np.array([2])), 4, 3)


def channels_last(g):
    x = g("Transpose", "x", perm=[0, 3, 1, 2])
    x = g("Relu", g("Conv", x, g.array(4, 3, 3, 3), g.array(4)))
    x = g("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g("Transpose", x, perm=[0, 2, 3, 1])
    x = g("Add", x, g.array(4))
    return gemm(g, g("Reshape", x, np.array([0, -1])), 3 * 3 * 4, 3)


def statistics(g, n):
    return g.array(n), g.array(n), g.array(n), g.array(n, least=0.5)


def normalised(g):
    x = g("Div", g("Sub", "x", g.array(3, 1, 1)), g.array(1, 3, 1, 1, least=0.5))
    x = g("BatchNormalization", g("Conv", x, g.array(4, 3, 3, 3)), *statistics(g, 4), epsilon=1e-3)
    x = g("Conv", g("Relu", x), g.array(4, 4, 3, 3), g.array(4))
    x = g("BatchNormalization", x, *statistics(g, 4))
    x = g("Sub", np.float32(1), g("Mul", g("Flatten", x), np.float32(0.5)))
    x = g("BatchNormalization", g("MatMul", x, g.array(80, 5)), *statistics(g, 5))
    return gemm(g, g("Relu", x), 5, 3)


def pooled(g):
    x = g("Conv", "x", g.array(4, 3, 3, 3), pads=[1] * 4)
    x = g("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    x = g("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    x = g("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 1, 1, 0], ceil_mode=1)
    x = g("MaxPool", x, kernel_shape=[2, 2], auto_pad="SAME_UPPER", dilations=[1, 1])
    x = g("Conv", x, g.array(4, 4, 1, 1))
    return g("ReduceMean", g("GlobalAveragePool", x), np.array([2, 3]), keepdims=0)


def residual(g):
    x = g("Conv", "x", g.array(4, 3, 1, 1))
    y = g("Relu", g("Conv", x, g.array(4, 4, 3, 3), g.array(4), pads=[1] * 4))
    y = g("Conv", y, g.array(4, 4, 3, 3), pads=[1] * 4)
    x = g("Relu", g("Sum", x, y, y))
    return gemm(g, g("Flatten", g("GlobalAveragePool", x)), 4, 2)


def shapes(g):
    x = g("Dropout", g("Identity", "x"))
    x = g("Unsqueeze", gemm(g, x, 5, 6), np.array([1]))
    x = g("Transpose", g("Reshape", x, np.array([-1, 2, 3])), perm=[0, 2, 1])
    return g("Softmax", gemm(g, g("Flatten", g("Relu", x)), 6, 4))


def computed_shape(g):
    """What exporters make of ``x.view(x.size(0), -1)``."""
    n = g("Gather", g("Shape", "x"), np.array(0), axis=0)
    shape = g("Concat", g("Unsqueeze", n, np.array([0])), np.array([-1]), axis=0)
    return gemm(g, g("Reshape", g("Relu", g("Conv", "x", g.array(2, 3, 3, 3))), shape), 80, 3)


# Weights -----------------------------------------------------------------------------------------


def constant_nodes(g):
    x = g("Gemm", "x", g.constant(g.array(5, 6)), g.constant(g.array(6)))
    return g("Add", g("MatMul", g("Relu", x), g.constant(g.array(6, 3))), g.constant(g.array(3)))


def behind_reshape(g):
    W = g("Reshape", g.array(3, 2, 6), np.array([6, 6]))
    x = g("Relu", g("MatMul", gemm(g, "x", 5, 6), W))
    W = g("Transpose", g("Unsqueeze", g("Identity", g.array(4, 6)), np.array([0])), perm=[1, 0, 2])
    return g("MatMul", x, g("Transpose", g("Reshape", W, np.array([4, 6]))))


def shared(g):
    W, b = g.hold(g.array(5, 5)), g.hold(g.array(5))
    x = g("Relu", g("Gemm", "x", W, b))
    return g("Gemm", g("Relu", g("Gemm", x, W, b, transB=1)), W)


# Everything else ---------------------------------------------------------------------------------


def others(g):
    """Operators that a network does not have, with two outputs, two inputs and integers."""
    x = g("Sin", gemm(g, "x", 5, 6))
    a, b = g("Split", x, outputs=2, axis=1, num_outputs=2)
    x = g("Concat", g("Mul", a, b), g("HardSwish", a), axis=1)
    x = g("Where", g("Greater", x, np.float32(0)), x, g("Mul", x, np.float32(0.1)))
    x = g("Add", x, g("Cast", g("ArgMax", x, axis=1, keepdims=1), to=1))
    return gemm(g, g("LayerNormalization", x, g.array(6)), 6, 3)


def attention(g):
    q, k, v = (g("MatMul", "x", g.array(5, 4)) for _ in range(3))
    scores = g("Softmax", g("MatMul", q, g("Transpose", k, perm=[0, 2, 1])))
    return g("MatMul", g("MatMul", scores, v), g.array(4, 3))


def recurrent(g):
    """Samples along the second axis."""
    x = g("Transpose", "x", perm=[1, 0, 2])
    x = g("LSTM", x, g.array(1, 16, 5), g.array(1, 16, 4), hidden_size=4, outputs=2)[0]
    x = g("Gather", g("Squeeze", x, np.array([1])), np.array(-1), axis=0)
    return gemm(g, x, 4, 3)


def expanded(g):
    """A constant whose shape counts the samples."""
    x = gemm(g, "x", 5, 6)
    ones = g("ConstantOfShape", g("Shape", x), value=numpy_helper.from_array(np.float32([2])))
    return gemm(g, g("Max", x, g("Sub", ones, np.float32(1.9))), 6, 3)


IMAGES, VECTORS = (N, 3, 10, 8), (N, 5)
BUILDERS = {
    "Gemm": (gemms, VECTORS), "MatMul, Add": (products, VECTORS),
    "W on the left": (columns, (N, 5, 1)), "W on the left, fixed": (columns, (1, 5, 1)),
    "no axis of samples": (vectors, (5,)), "column without samples": (columns, (5, 1)),
    "row": (rows, (1, 1, 1, 5)), "tokens": (tokens, (N, 3, 5)), "merged": (merged, (N, 3, 5)),
    "Conv": (convolutions, IMAGES), "Conv, fixed": (convolutions, (1, *IMAGES[1:])),
    "Conv, batch of 4": (convolutions, (4, *IMAGES[1:])),
    "1-d": (signals_of_time, (N, 3, 12)), "NHWC": (channels_last, (N, 8, 8, 3)),
    "NHWC, fixed": (channels_last, (1, 8, 8, 3)),
    "BatchNormalization": (normalised, (N, 3, 8, 9)), "pooling": (pooled, (N, 3, 9, 11)),
    "residual": (residual, IMAGES), "shapes": (shapes, VECTORS),
    "shapes, fixed": (shapes, (1, 5)), "computed shape": (computed_shape, (N, 3, 10, 7)),
    "Constant nodes": (constant_nodes, VECTORS), "behind Reshape": (behind_reshape, VECTORS),
    "shared": (shared, VECTORS), "others": (others, VECTORS), "others, fixed": (others, (1, 5)),
    "attention": (attention, (N, 3, 5)), "recurrent": (recurrent, (N, 4, 5)),
    "expanded": (expanded, VECTORS),
}  # fmt: skip

#: An operator between two layers: its attributes, its constants, and the kind of operation.
ACTIVATIONS = {
    "Relu": ({}, [], "relu"), "LeakyRelu": ({"alpha": 0.2}, [], "leaky_relu"),
    "LeakyRelu 0": ({"alpha": 0.0}, [], "relu"), "Sigmoid": ({}, [], "sigmoid"),
    "PRelu": ({}, [np.full(6, 0.3, np.float32)], "prelu"),
    "PRelu one": ({}, [np.float32([0.3])], "prelu"),
    "Clip": ({}, [np.float32(0), np.float32(6)], "relu6"),
    "Clip c": ({}, [np.float32(0), np.float32(0.5)], "clipped_relu"),
    "Clip tanh": ({}, [np.float32(-1), np.float32(1)], "hard_tanh"),
    "Clip low": ({}, [np.float32(0)], "relu"), "Clip odd": ({}, [np.float32(-0.1)], "onnx Clip"),
    "Tanh": ({}, [], "tanh"), "Elu": ({"alpha": 0.7}, [], "elu"), "Softplus": ({}, [], "softplus"),
    "HardSigmoid": ({}, [], "hard_sigmoid"),
    "HardSigmoid 6": ({"alpha": 1 / 6, "beta": 0.4}, [], "hard_sigmoid"),
    "Gelu": ({}, [], "gelu"), "Gelu tanh": ({"approximate": "tanh"}, [], "gelu"),
    "HardSwish": ({}, [], "onnx HardSwish"), "Selu": ({}, [], "onnx Selu"),
    "Softmax": ({"axis": 1}, [], "softmax"), "LogSoftmax": ({}, [], "softmax"),
    "PRelu negative": ({}, [np.full(6, -0.3, np.float32)], "onnx PRelu"),
}  # fmt: skip


def built(builder, shape, **options):
    g = Graph(shape, **options)
    return g.model(builder(g))


def run(model, X):
    """What onnxruntime computes, sample by sample where the model takes one at a time."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options)
    (place,) = (p for p in session.get_inputs() if p.name == "x")
    sizes = [1 if isinstance(n, str) or n is None else n for n in place.shape]
    if isinstance(place.shape[0], str) or place.shape[0] is None:
        return session.run(None, {"x": X.reshape(len(X), *sizes[1:])})[0]
    if np.prod(sizes) == X[0].size:
        several = [session.run(None, {"x": x.reshape(sizes)})[0] for x in X]
        return np.stack([y[0] if y.shape[0] == 1 < y.ndim else y for y in several])
    return session.run(None, {"x": X.reshape(sizes)})[0]


def samples(network, n=4, dtype=np.float32):
    return np.random.default_rng(3).standard_normal((n, *network.input_shape)).astype(dtype)


def assert_equal(found, expected, kind="network_single"):
    assert found.shape == expected.shape
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[kind] * scale)


def changed(network):
    """Other weights with a third of zeros, other intercepts."""
    rng = np.random.default_rng(5)
    changes = {}
    for layer in network.layers:
        W = layer.W * (1.2 * (rng.random(layer.W.shape) > 0.4))
        changes[layer.name] = (W, None if layer.b is None else layer.b + 0.3)
    return network.replace(changes)


def outline(model):
    """Everything of a model but its tensors."""
    return (
        [(n.op_type, n.name, list(n.output), len(n.input)) for n in model.graph.node
         if n.op_type != "Constant"],
        [p.SerializeToString() for p in [*model.graph.input, *model.graph.output]],
        model.ir_version, [(s.domain, s.version) for s in model.opset_import],
    )  # fmt: skip


@pytest.mark.parametrize("name", BUILDERS)
def test_models_are_read_and_written_back(name):
    model = built(*BUILDERS[name])
    network = from_onnx(model)
    X = samples(network)
    assert_equal(network(X), run(model, X))
    assert to_onnx(model, network).SerializeToString() == model.SerializeToString()
    for other in (changed(network), changed(network.folded())):
        written = to_onnx(model, other)
        onnx.checker.check_model(written, full_check=True)
        assert_equal(run(written, X), other(X))
        assert outline(written) == outline(model)
        again = from_onnx(written)
        zeros = [int(np.sum(layer.W == 0)) for layer in again.layers]
        assert zeros == [int(np.sum(layer.W == 0)) for layer in other.layers]
        assert min(zeros) > 0
    assert all(note.reason is None for note in inspect_onnx(model)) or name == "recurrent"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    attributes, constants, kind = ACTIVATIONS[name]
    g = Graph(VECTORS)
    x = g(name.split()[0], gemm(g, "x", 5, 6), *constants, **attributes)
    model = g.model(gemm(g, x, 6, 3))
    network = from_onnx(model)
    assert network.operations[1].kind == kind
    X = samples(network, 50)
    assert_equal(network(X), run(model, X))
    assert len(network.operations) == 3 and network.input_shape == (5,)


@pytest.mark.parametrize("opset", [7, 11])
def test_old_versions(opset):
    g = Graph(VECTORS, opset=opset, ir=5)
    x = g("Relu", gemm(g, "x", 5, 6))
    if opset < 11:
        x = g("Clip", x, min=0.0, max=2.0)
    x = g("Softmax", g("Reshape", x, np.array([-1, 2, 3])), axis=1)
    x = g("Squeeze", g("Unsqueeze", gemm(g, g("Flatten", x), 6, 3), axes=[2]), axes=[2])
    model = g.model(g("Softmax", x))
    network = from_onnx(model)
    X = samples(network)
    assert_equal(network(X), run(model, X))
    assert network.output.kind == "softmax"


def test_double_precision():
    g = Graph(VECTORS, dtype=np.float64)
    model = g.model(gemm(g, g("Tanh", gemm(g, "x", 5, 6)), 6, 3))
    network = changed(from_onnx(model))
    X = samples(network, dtype=np.float64)
    assert network.dtype == np.float64
    assert_equal(run(to_onnx(model, network), X), network(X), "network_double")


def test_layers_have_their_nodes_names_and_geometry():
    network = from_onnx(built(convolutions, IMAGES))
    assert [layer.name for layer in network.layers][:2] == ["t0_0", "t2_0"]
    first, second, third, *_ = network.layers
    assert (first.padding, first.stride) == ((1, 0, 2, 1), (2, 1))
    assert (second.groups, second.dilation) == (2, (1, 2))
    assert second.b is not None and third.b is None
    assert [type(layer) for layer in from_onnx(built(tokens, (N, 3, 5))).layers] == [Conv2d] * 4


def test_batch_normalisations_go_into_their_layers():
    network = from_onnx(built(normalised, (N, 3, 8, 9)))
    assert sum(isinstance(op, BatchNorm) for op in network.operations) == 3
    assert not any(isinstance(op, BatchNorm) for op in network.folded().operations)
    time = from_onnx(built(signals_of_time, (N, 3, 12)))
    assert not any(isinstance(op, BatchNorm) for op in time.folded().operations)


@pytest.mark.parametrize("name", ["W on the left", "NHWC", "1-d", "others"])
def test_pruned_networks_come_back(name):
    model = built(*BUILDERS[name])
    network = from_onnx(model)
    X = samples(network, 60)
    result = prune(network, X, tolerance=0.3)
    written = to_onnx(model, result.network)
    assert result.network.sparsity > 0.1
    assert_equal(run(written, X), result.network(X))


def test_initializers_that_are_inputs_too():
    g = Graph(VECTORS, opset=8, ir=3)
    W, b = g.hold(g.array(5, 6)), g.hold(g.array(6))
    x = g("Relu", g("Gemm", "x", W, b))
    output = g("Gemm", g("Relu", g("Gemm", x, g.array(6, 5), b, transB=0)), W, b)
    g.nodes[2].input[2] = g.hold(g.array(5))
    inputs = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in g.initializers]
    model = g.model(output, inputs)
    network = changed(from_onnx(model))
    written = to_onnx(model, network, sparse=True)
    onnx.checker.check_model(written, full_check=True)
    X = samples(network)
    assert_equal(run(written, X), network(X))
    # W and b are shared, and this version has no initializers of their own: constants hold them.
    assert [node.op_type for node in written.graph.node].count("Constant") == 4
    assert outline(written) == outline(model) and not written.graph.sparse_initializer


def test_only_what_changed_is_written():
    model = built(convolutions, IMAGES)
    network = from_onnx(model)
    name = network.layers[1].name
    written = to_onnx(model, network.replace({name: (network.layers[1].W * 0.5, None)}))
    before = {t.name: t.SerializeToString() for t in model.graph.initializer}
    after = {t.name: t.SerializeToString() for t in written.graph.initializer}
    differing = [name for name in before if before[name] != after[name]]
    assert list(before) == list(after) and len(differing) == 2  # W, and the b that was dropped


def test_sparse_initializers_are_smaller_and_come_back(tmp_path):
    g = Graph((N, 40))
    model = g.model(gemm(g, g("Relu", gemm(g, "x", 40, 50)), 50, 30))
    network = from_onnx(model)
    first, second = network.layers
    W = np.where(np.random.default_rng(0).random(first.W.shape) < 0.1, first.W, 0)
    pruned = network.replace({first.name: (W, first.b)})
    path = tmp_path / "sparse.onnx"
    written = to_onnx(model, pruned, path, sparse=True)
    assert [t.values.name for t in written.graph.sparse_initializer] == ["c0"]
    assert path.stat().st_size < len(to_onnx(model, pruned).SerializeToString())
    X = samples(network)
    assert_equal(run(onnx.load(path), X), pruned(X))
    again = from_onnx(path)
    assert np.array_equal(again.layers[0].W, first.W * (W != 0))
    dense = to_onnx(path, again.replace({first.name: (first.W, first.b)}))
    assert_equal(run(dense, X), network(X))


def test_external_data_is_read_and_comes_back_in_one_file(tmp_path):
    model = built(gemms, VECTORS)
    path = tmp_path / "outside.onnx"
    onnx.save(
        copy.deepcopy(model), path, save_as_external_data=True, size_threshold=0,
        location="data.bin",
    )  # fmt: skip
    network = from_onnx(path)
    X = samples(network)
    assert_equal(network(X), run(model, X))
    to_onnx(path, changed(network), tmp_path / "pruned.onnx")
    assert_equal(run(onnx.load(tmp_path / "pruned.onnx"), X), changed(network)(X))
    outside = onnx.load(path, load_external_data=False)
    with pytest.raises(ProblemError, match="in other files"):
        from_onnx(outside)
    (tmp_path / "data.bin").unlink()
    with pytest.raises(ProblemError, match="has data elsewhere"):
        from_onnx(path)


def test_inputs_and_outputs_are_chosen():
    g = Graph(VECTORS)
    hidden = gemm(g, "x", 5, 6)
    result = gemm(g, g("Relu", g("Add", hidden, "bias")), 6, 3)
    inputs = [helper.make_tensor_value_info("bias", 1, [6])]
    model = g.model(result, inputs)
    model.graph.output.append(helper.make_tensor_value_info(hidden, 1, [N, 6]))
    bias = np.ones(6)
    with pytest.raises(ProblemError, match="output must be given"):
        from_onnx(model, input="x", constants={"bias": bias})
    with pytest.raises(ProblemError, match=r"'x' must be the only one .* are \['x', 'bias'\]"):
        from_onnx(model, output=result, input="x")
    chosen = {"constants": {"bias": bias}, "output": result}
    network = from_onnx(model, **chosen)
    X = samples(network)
    dense = {layer.name: layer for layer in network.layers}
    (W0, b0), (W1, b1) = ((layer.W, layer.b) for layer in dense.values())
    assert_equal(network(X), np.maximum(X @ W0 + b0 + 1, 0) @ W1 + b1)
    written = to_onnx(model, changed(network), **chosen)
    assert_equal(from_onnx(written, **chosen)(X), changed(network)(X))
    first = from_onnx(model, output=hidden, constants={"bias": bias})
    assert [layer.name for layer in first.layers] == [network.layers[0].name]
    notes = inspect_onnx(model, output=hidden, constants={"bias": bias})
    assert [note.reason is None for note in notes] == [True, False]
    assert "does not depend on it" in notes[1].reason


def test_integer_inputs():
    g = Graph((N, 4))
    x = g("Gather", g.array(2, 5), "x")
    model = g.model(gemm(g, g("Flatten", g("Relu", x)), 20, 3), shape=[N, 3])
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    network = from_onnx(model)
    X = np.random.default_rng(0).integers(0, 2, (6, 4))
    assert_equal(network(X), run(model, X))
    result = prune(network, X, sparsity=0.5, steps="magnitude")
    assert_equal(run(to_onnx(model, result.network), X), result.network(X))
    (note, _) = inspect_onnx(model)
    assert (note.operator, note.shape) == ("Gather", (2, 5)) and "not among" in note.reason


def test_open_shapes_are_given():
    g = Graph((N, 3, "height", None))
    model = g.model(g("Relu", g("Conv", "x", g.array(2, 3, 3, 3))))
    with pytest.raises(ProblemError, match="input_shape must be given"):
        from_onnx(model)
    with pytest.raises(ProblemError, match="input_shape must fit"):
        from_onnx(model, input_shape=(4, 8, 8))
    network = from_onnx(model, input_shape=(3, 8, 9))
    X = samples(network)
    assert_equal(network(X), run_open(model, X))
    assert_equal(run_open(to_onnx(model, changed(network)), X), changed(network)(X))


def run_open(model, X):
    return runtime.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]


def test_what_cannot_be_pruned_is_noted():
    g = Graph((N, 3, 8, 8))
    x = g("ConvTranspose", "x", g.array(3, 4, 2, 2))
    x = g("Conv", x, g("DequantizeLinear", np.ones((2, 4, 3, 3), np.int8), np.float32(0.1)))
    x = g("Flatten", g("Conv", x, g.array(2, 2, 1, 1)))
    model = g.model(x)
    notes = inspect_onnx(model)
    assert [note.operator for note in notes] == ["ConvTranspose", "Conv", "Conv"]
    assert "not among the operators that are pruned" in notes[0].reason
    assert "computed by DequantizeLinear" in notes[1].reason
    assert notes[2].reason is None and (notes[2].shape, notes[2].nnz) == ((2, 2, 1, 1), 4)
    network = from_onnx(model)
    assert [layer.name for layer in network.layers] == [notes[2].name]
    X = samples(network)
    assert_equal(network(X), run(model, X))


def test_operators_of_other_domains_and_local_functions():
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opsets = [helper.make_opsetid("", 20)]
    double = helper.make_function("local", "Double", ["a"], ["b"], body, opsets)
    g = Graph(VECTORS, domains=("com.microsoft", "local"), functions=(double,))
    x = gemm(g, "x", 5, 6)
    g.nodes.append(helper.make_node("Gelu", [x], ["gelu"], domain="com.microsoft"))
    g.nodes.append(helper.make_node("Double", ["gelu"], ["doubled"], domain="local"))
    model = g.model(gemm(g, "doubled", 6, 3), shape=[N, 3])
    network = from_onnx(model)
    assert [op.kind for op in network.operations] == ["dense", "onnx Gelu", "onnx Double", "dense"]
    X = samples(network)
    assert_equal(network(X), run(model, X))
    assert_equal(run(to_onnx(model, changed(network)), X), changed(network)(X))


def test_a_node_takes_samples_of_its_own_shape_alone():
    network = from_onnx(built(others, VECTORS))
    node = next(op for op in network.operations if op.kind == "onnx Split")
    assert repr(node).endswith("Split)") and len(node.inputs) == 1
    with pytest.raises(ProblemError, match=r"takes samples of shape \(6,\)"):
        node.apply(np.ones((3, 5), np.float32))


def test_double_precision_samples_of_a_single_precision_model():
    network = from_onnx(built(others, VECTORS))
    X = samples(network, dtype=np.float64)
    assert network(X).dtype == np.float64
    assert_equal(network(X), network(X.astype(np.float32)).astype(np.float64))


@pytest.mark.parametrize("name", [*READERS, *ARITHMETIC, *LAYERS, "Sum", "Concat"])
def test_the_page_names_every_operator(name):
    page = Path(__file__).parents[1] / "docs" / "onnx.md"
    assert f"`{name}`" in page.read_text(encoding="utf-8")


def test_another_network_is_refused():
    model = built(gemms, VECTORS)
    network = from_onnx(model)
    other = Network([Dense(np.ones((5, 3)))])
    with pytest.raises(ProblemError, match="network must be a Network, but was a list"):
        to_onnx(model, [])
    with pytest.raises(ProblemError, match="must have the layers of the model"):
        to_onnx(model, other)
    last = network.layers[-1]
    with pytest.raises(ProblemError, match="has an intercept, but in the model"):
        to_onnx(model, network.replace({last.name: (last.W, np.ones(3))}))
    g = Graph(VECTORS)
    with pytest.raises(ProblemError, match="must compute what the network does"):
        to_onnx(model, from_onnx(g.model(g("Relu", gemms(g)))))


@pytest.mark.parametrize("write", [to_npz, lambda network, path: save_sparse(path, network)])
def test_nodes_that_onnxruntime_computes_go_into_no_file_of_arrays(tmp_path, write):
    g = Graph(VECTORS)
    network = from_onnx(g.model(g("HardSwish", gemms(g))))
    with pytest.raises(ProblemError, match=r"\(onnx HardSwish\) must be one of .* to_onnx"):
        write(network, tmp_path / "network.npz")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_unless_all_is(tmp_path):
    model = built(gemms, VECTORS)
    network = from_onnx(model)
    with pytest.raises(OSError):
        to_onnx(model, network, tmp_path / "missing" / "out.onnx")
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ProblemError):
        to_onnx(model, Network([Dense(np.ones((5, 3)))]), path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    to_onnx(model, network, path)
    assert path.read_bytes() == model.SerializeToString()

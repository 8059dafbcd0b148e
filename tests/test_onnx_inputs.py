"""ONNX: models with several inputs that differ from sample to sample, against onnxruntime."""

import math

import numpy as np
import pytest

from nettrim_solver.exceptions import ProblemError
from nettrim_solver.frameworks import from_onnx, inspect_onnx, join_inputs, to_onnx
from nettrim_solver.network import Concatenate, Dense, Network, Part

from .helpers import prune
from .test_onnx import Graph, N, assert_equal, changed, gemm, onnx, outline, runtime

helper = onnx.helper
REAL, INT, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
RNG = np.random.default_rng(8)


def two_signals(g):
    a = g("Relu", gemm(g, "a", 5, 6))
    b = g("Tanh", g("MatMul", "b", g.array(2, 4)))
    return gemm(g, g("Concat", a, g("Flatten", b), axis=-1), 18, 3)


def words(g):
    """Words that a mask may hide, and numbers."""
    found = g("Relu", g("MatMul", g("Gather", g.array(50, 8), "ids"), g.array(8, 6)))
    mask = g("Unsqueeze", g("Cast", "mask", to=REAL), np.array([2]))
    mean = g("ReduceSum", g("Mul", found, mask), np.array([1]), keepdims=0)
    return gemm(g, g("Concat", "numbers", mean, axis=1), 10, 3)


def memory(g):
    """Attention of every sample's query to its own memory of a fixed size."""
    scores = g("Softmax", g("MatMul", gemm(g, "query", 5, 3), g("Transpose", "memory")))
    return gemm(g, g("MatMul", scores, "memory"), 3, 2)


def scaled(g):
    return g("Mul", gemm(g, "row", 5, 3), g("Unsqueeze", "scale", np.array([1])))


def unused(g):
    return gemm(g, "used", 5, 3)


#: What builds the model, and by name the type and the shape of each input.
MODELS = {
    "two signals": (two_signals, {"a": (REAL, (N, 5)), "b": (REAL, (N, 3, 2))}),
    "one at a time": (two_signals, {"b": (REAL, (1, 3, 2)), "a": (REAL, (1, 5))}),
    "words": (words, {"ids": (INT, (N, 4)), "mask": (BOOL, (N, 4)), "numbers": (REAL, (N, 4))}),
    "memory": (memory, {"query": (REAL, (N, 5)), "memory": (REAL, (4, 3))}),
    "a number": (scaled, {"scale": (REAL, (N,)), "row": (REAL, (N, 5))}),
    "unused": (unused, {"left": (REAL, (N, 2)), "used": (REAL, (N, 5))}),
}


def built(builder, places):
    g = Graph((N, 1))
    inputs = [
        helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in places.items()
    ]
    model = g.model(builder(g), inputs)
    del model.graph.input[0]  # The one that other tests use.
    onnx.checker.check_model(model, full_check=True)
    return model


def batch(places, n=40):
    """A batch of each input, as the model's author would feed it."""
    found = {}
    for name, (kind, shape) in places.items():
        own = shape[1:] if shape[0] in (N, 1) else shape
        numbers = {
            REAL: RNG.standard_normal((n, *own)).astype(np.float32),
            INT: RNG.integers(0, 50, (n, *own)),
            BOOL: RNG.random((n, *own)) < 0.7,
        }
        found[name] = numbers[kind]
    return found


def run(model, places, inputs):
    """What onnxruntime computes of each sample."""
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    n = len(next(iter(inputs.values())))
    outputs = []
    for i in range(n):
        feed = {
            name: inputs[name][i].reshape([1 if size == N else size for size in shape])
            for name, (_, shape) in places.items()
        }
        outputs.append(session.run(None, feed)[0][0])
    return np.stack(outputs)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_read_pruned_and_written_back(name):
    builder, places = MODELS[name]
    model = built(builder, places)
    network = from_onnx(model)
    inputs = batch(places)
    X = join_inputs(*inputs.values())
    assert network.input_shape == X.shape[1:]
    assert_equal(network(X), run(model, places, inputs))
    assert to_onnx(model, network).SerializeToString() == model.SerializeToString()
    result = prune(network, X, sparsity=0.5, steps="magnitude")
    for other in (result.network, changed(network)):
        written = to_onnx(model, other)
        assert outline(written) == outline(model)
        assert_equal(run(written, places, inputs), other(X))
        assert [np.sum(layer.W == 0) for layer in from_onnx(written).layers] == [
            np.sum(layer.W == 0) for layer in other.layers
        ]
    assert 0.4 < result.network.sparsity < 0.6


def test_parts_are_in_the_order_of_the_inputs():
    network = from_onnx(built(*MODELS["words"]))
    parts = [op for op in network.operations if isinstance(op, Part)]
    assert [part.name for part in parts] == ["ids", "mask", "numbers"]
    assert parts[0].shapes == ((4,), (4,), (4,)) and [part.index for part in parts] == [0, 1, 2]
    (part,) = (op for op in from_onnx(built(*MODELS["unused"])).operations if op.kind == "part")
    assert (part.name, part.index, part.shapes) == ("used", 1, ((2,), (5,)))


def test_names_that_nodes_have_too():
    """An input called as a node, and one as the network's own."""
    builder, _ = MODELS["two signals"]
    model = built(builder, {"a": (REAL, (N, 5)), "b": (REAL, (N, 3, 2))})
    model.graph.node[0].name = "a"
    model.graph.input[1].name = model.graph.node[2].input[0] = "input"
    network = from_onnx(model)
    assert network.layers[0].name == "a"
    assert to_onnx(model, network).SerializeToString() == model.SerializeToString()


def test_some_inputs_stay_the_same():
    builder, places = MODELS["words"]
    model = built(builder, places)
    inputs = batch(places)
    mask = inputs["mask"][:1]
    constants = {"mask": mask}
    network = from_onnx(model, constants=constants)
    X = join_inputs(inputs["ids"], inputs["numbers"])
    masked = inputs | {"mask": np.repeat(mask, len(X), axis=0)}
    assert_equal(network(X), run(model, places, masked))
    other = changed(network)
    written = to_onnx(model, other, constants=constants)
    assert outline(written) == outline(model)
    assert_equal(run(written, places, masked), other(X))
    alone = from_onnx(model, input="ids", constants=constants | {"numbers": np.ones((1, 4))})
    assert alone.input_shape == (4,) and not any(op.kind == "part" for op in alone.operations)


def test_open_sizes_are_given_for_each_input():
    builder, places = MODELS["words"]
    opened = {name: (kind, (N, "length")) for name, (kind, _) in places.items()}
    opened["numbers"] = places["numbers"]
    model = built(builder, opened)
    with pytest.raises(ProblemError, match=r"must be given .* 'ids' has \['\?', '\?'\]"):
        from_onnx(model)
    for wrong in ((7,), (7, 7, 4), 7, [(7,), (7,)]):
        with pytest.raises(ProblemError, match=r"a shape for each of the inputs \['ids', 'mask', "):
            from_onnx(model, input_shape=wrong)
    with pytest.raises(ProblemError, match="must fit the model's input 'numbers'"):
        from_onnx(model, input_shape=[(7,), (7,), (7,)])
    shapes = [(7,), (7,), (4,)]
    network = from_onnx(model, input_shape=shapes)
    longer = {name: (kind, (N, *shape)) for (name, (kind, _)), shape
              in zip(places.items(), shapes, strict=True)}  # fmt: skip
    inputs = batch(longer)
    X = join_inputs(*inputs.values())
    other = changed(network)
    assert_equal(run(to_onnx(model, other), longer, inputs), other(X))
    assert all(note.reason is None for note in inspect_onnx(model, input_shape=shapes)[1:])


def test_bounds_pass_a_concatenation():
    model = built(*MODELS["two signals"])
    network = from_onnx(model)
    assert [op.axis for op in network.operations if isinstance(op, Concatenate)] == [0]
    X = join_inputs(*batch(MODELS["two signals"][1], 200).values())
    last = prune(network, X, tolerance=0.2).layer(network.layers[-1].name)
    assert 0 < last.network_error <= last.network_bound < math.inf


@pytest.mark.parametrize("axis", [1, 2, -2])
def test_concatenations_along_any_axis_of_a_sample(axis):
    def joined(g):
        x = g("Concat", "a", g("Relu", "b"), "a", axis=axis)
        return gemm(g, g("Flatten", x), 18, 2)

    places = {"a": (REAL, (N, 3, 2)), "b": (REAL, (N, 3, 2))}
    model = built(joined, places)
    network = from_onnx(model)
    assert "concatenate" in [op.kind for op in network.operations]
    inputs = batch(places)
    assert_equal(network(join_inputs(*inputs.values())), run(model, places, inputs))


# Bad input ---------------------------------------------------------------------------------------


def test_numbers_that_an_input_does_not_have_are_refused():
    _, places = MODELS["words"]
    network = from_onnx(built(*MODELS["words"]))
    inputs = batch(places)
    for odd in (0.5, np.nan, -np.inf):
        wrong = np.full((40, 4), odd, np.float32)
        with pytest.raises(ProblemError, match=rf"Gather\) takes whole numbers, but gets {odd}"):
            network(join_inputs(wrong, inputs["mask"], inputs["numbers"]))
    with pytest.raises(ProblemError, match=r"Cast\) takes bool numbers, but gets 7"):
        network(join_inputs(inputs["ids"], np.full((40, 4), 7), inputs["numbers"]))
    with pytest.raises(ProblemError, match="float32 does not round"):
        join_inputs(inputs["ids"] + 2**24 + 1, inputs["mask"], inputs["numbers"])


def test_samples_that_are_mixed_are_refused():
    def mixed(g):
        return g("Mul", gemm(g, "a", 5, 3), g("ReduceMean", "b", np.array([0]), keepdims=1))

    with pytest.raises(ProblemError, match="every sample by itself"):
        from_onnx(built(mixed, {"a": (REAL, (N, 5)), "b": (REAL, (N, 3))}))


def test_a_network_with_other_inputs_is_refused():
    model = built(*MODELS["two signals"])
    other = Network([Dense(np.ones((11, 3)))], (11,))
    with pytest.raises(ProblemError, match=r"inputs are \['a', 'b'\], but takes 1"):
        to_onnx(model, other)
    with pytest.raises(ProblemError, match="must fit the model's input 'a'"):
        to_onnx(model, from_onnx(built(*MODELS["one at a time"])))

"""Networks as arrays: operations, graphs, replaced weights, errors; agreement with PyTorch."""

import pickle
import weakref

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import activations
from nettrim_solver.exceptions import NettrimError, ProblemError
from nettrim_solver.network import (
    Activate,
    Add,
    Affine,
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    MaxPool2d,
    Network,
    Reshape,
    Softmax,
    Transpose,
)

from .test_activations import EXAMPLES
from .tolerances import TOLERANCE

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(-4, 5, (3, 2, 5, 6)).astype(np.float64)
X = RNG.integers(-4, 5, (5, 4)).astype(np.float64)


def whole(*shape):
    return RNG.integers(-3, 4, shape).astype(np.float64)


def chain(*widths, dtype=np.float64):
    """A ReLU chain with integer weights: its outputs are exact."""
    operations = []
    for n_inputs, n_outputs in zip(widths[:-1], widths[1:], strict=True):
        W, b = whole(n_inputs, n_outputs).astype(dtype), whole(n_outputs).astype(dtype)
        operations += [Dense(W, b), Activate("relu")]
    return Network(operations[:-1])


def residual():
    """A small graph: two convolutions around a shortcut, normalised, pooled, classified."""
    norm = [[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [1.0, 0.0, 2.0], [3.0, 3.0, 15.0]]
    return Network(
        [
            Conv2d(whole(3, 2, 3, 3), whole(3), padding=1, name="first"),
            BatchNorm(*norm, eps=1.0, name="norm1"),
            Activate("relu", name="start"),
            Conv2d(whole(3, 3, 3, 3), padding="same", name="second"),
            BatchNorm(*norm, eps=1.0, name="norm2"),
            Add(name="sum", inputs=("norm2", "start")),
            Activate("relu", name="end"),
            Conv2d(whole(3, 1, 2, 2), groups=3, stride=2, name="third"),
            MaxPool2d(2),
            Flatten(),
            Dense(whole(3, 4), whole(4), name="last"),
        ],
        input_shape=(2, 5, 6),
    )


# Operations -------------------------------------------------------------------------------------


def test_a_dense_layer_multiplies_and_adds():
    W, b = whole(4, 3), whole(3)
    expected = [[sum(x[i] * W[i, j] for i in range(4)) + b[j] for j in range(3)] for x in X]
    np.testing.assert_array_equal(Dense(W, b).apply(X), expected)
    np.testing.assert_array_equal(Dense(W).apply(X), np.array(expected) - b)


@pytest.mark.parametrize("activation", EXAMPLES, ids=repr)
def test_activations_are_elementwise_and_keep_the_dtype(activation):
    columns = np.broadcast_to([[-2.0, 0.3, 4.0]], (5, 3))
    expected = activation(columns)
    np.testing.assert_array_equal(Activate(activation).apply(columns), expected)
    single = Activate(activation).apply(columns.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=TOLERANCE["network_single"], atol=1e-7)
    images = columns[:, :, None, None] * np.ones((1, 1, 2, 4))
    output = Activate(activation).apply(images)
    assert output.flags.c_contiguous
    np.testing.assert_array_equal(output, expected[:, :, None, None] * np.ones((1, 1, 2, 4)))


def test_reshaping_operations_keep_the_order_of_c():
    np.testing.assert_array_equal(Flatten().apply(IMAGES), [image.ravel() for image in IMAGES])
    np.testing.assert_array_equal(Reshape((-1, 4)).apply(IMAGES), IMAGES.reshape(3, 15, 4))
    assert Reshape([60]).output_shape((2, 5, 6)) == (60,)
    last = np.stack([np.moveaxis(image, 0, -1) for image in IMAGES])
    np.testing.assert_array_equal(Transpose((2, 0, 1)).apply(last), IMAGES)
    assert Transpose((2, 0, 1)).output_shape((5, 6, 2)) == (2, 5, 6)
    assert Dropout().apply(X) is X


def test_affine_scales_and_shifts_by_number_feature_and_channel():
    np.testing.assert_array_equal(Affine(2.0, -1.0).apply(X), 2 * X - 1)
    np.testing.assert_array_equal(Affine([1, 2, 3, 4]).apply(X), X * [1, 2, 3, 4])
    channels = np.array([1.0, -2.0])[:, None, None]
    output = Affine(shift=channels).apply(IMAGES)
    np.testing.assert_array_equal(output[:, 1], IMAGES[:, 1] - 2)
    assert Affine(0.5).apply(X.astype(np.float32)).dtype == np.float32
    with pytest.raises(ProblemError, match=r"affine.*shift \(3,\).*gets \(4,\)"):
        Affine(shift=[1, 2, 3]).apply(X)


def test_softmax_add_and_the_mean_of_images():
    np.testing.assert_allclose(
        Softmax().apply(X), scipy.special.softmax(X, axis=1), rtol=TOLERANCE["network_double"]
    )
    np.testing.assert_allclose(
        Softmax(log=True).apply(X), scipy.special.log_softmax(X, axis=1),
        rtol=TOLERANCE["network_double"],
    )  # fmt: skip
    output = Softmax(axis=0).apply(IMAGES)
    np.testing.assert_allclose(output.sum(axis=1), 1.0, rtol=TOLERANCE["network_double"])
    assert np.all(np.isfinite(Softmax().apply(np.array([[1e4, -1e4]]))))
    np.testing.assert_array_equal(Add().apply(X, X, X), 3 * X)
    np.testing.assert_array_equal(GlobalAveragePool().apply(4 * IMAGES), 4 * IMAGES.mean((2, 3)))
    assert GlobalAveragePool(keep_dims=True).output_shape((2, 5, 6)) == (2, 1, 1)


# The dtype and the batches ----------------------------------------------------------------------


@pytest.mark.parametrize("weights", [np.float32, np.float64])
@pytest.mark.parametrize("samples", [np.float32, np.float64, np.int64, np.uint8, bool, np.float16])
def test_the_dtype_is_that_of_weights_and_samples_together(weights, samples):
    network = residual().astype(weights)
    output = network(IMAGES.astype(samples))
    single = weights == np.float32 and samples != np.float64
    assert output.dtype == (np.float32 if single else np.float64)
    assert all(layer.dtype == weights for layer in network.layers)


@given(st.integers(1, 8))
def test_batches_change_nothing(batch_size):
    for network, samples in ((chain(4, 6, 3), X), (residual(), IMAGES)):
        np.testing.assert_array_equal(network(samples, batch_size), network(samples))


def test_lists_views_and_no_samples_are_fine():
    network = chain(4, 6, 3)
    np.testing.assert_array_equal(network(X.tolist()), network(X))
    np.testing.assert_array_equal(network(np.asfortranarray(X)[::-1]), network(X)[::-1])
    assert network(np.empty((0, 4))).shape == (0, 3)


def test_nothing_is_aliased_or_modified():
    W, b = whole(4, 3), whole(3)
    before = W.copy(), b.copy(), X.copy()
    network = Network([Dropout(), Dense(W, b), Dropout()])
    output = network(X)
    W[:] = 99
    b[:] = 99
    np.testing.assert_array_equal(network(X), output)
    np.testing.assert_array_equal(network.layers[0].W, before[0])
    np.testing.assert_array_equal(network.layers[0].b, before[1])
    np.testing.assert_array_equal(X, before[2])
    assert not np.shares_memory(Network([Dropout()])(X), X)
    with pytest.raises(ValueError, match="read-only"):
        network.layers[0].W[0, 0] = 1.0


def test_a_network_can_be_pickled():
    network = residual()
    again = pickle.loads(pickle.dumps(network))
    np.testing.assert_array_equal(again(IMAGES), network(IMAGES))


# The graph --------------------------------------------------------------------------------------


def test_a_chain_is_its_formula():
    network = chain(4, 6, 3)
    first, second = network.layers
    hidden = np.maximum(X @ first.W + first.b, 0)
    np.testing.assert_array_equal(network(X), hidden @ second.W + second.b)
    assert [op.name for op in network.operations] == ["dense_0", "relu_0", "dense_1"]
    assert [op.inputs for op in network.operations] == [("input",), ("dense_0",), ("relu_0",)]


def test_a_residual_graph_is_its_formula():
    network = residual()
    step = {op.name: op for op in network.operations}
    start = step["start"].apply(step["norm1"].apply(step["first"].apply(IMAGES)))
    inner = step["norm2"].apply(step["second"].apply(start))
    end = np.maximum(inner + start, 0)
    pooled = step["max_pool2d_0"].apply(step["third"].apply(end))
    expected = pooled.reshape(3, -1) @ step["last"].W + step["last"].b
    np.testing.assert_array_equal(network(IMAGES), expected)
    assert network.shapes["sum"] == (3, 5, 6) and network.shapes["last"] == (4,)


def test_consumers_layers_and_activations_are_found():
    network = residual()
    assert [layer.name for layer in network.layers] == ["first", "second", "third", "last"]
    assert [op.name for op in network.consumers("start")] == ["second", "sum"]
    assert [op.name for op in network.consumers("input")] == ["first"]
    assert network.consumers("last") == () and network.output.name == "last"
    assert network.ancestors("sum") == {"first", "norm1", "start", "second", "norm2"}
    assert network.layer("second") is network["second"]
    with pytest.raises(ProblemError, match=r"operation 'sum' \(add\) is no layer: the layers are"):
        network.layer("sum")
    with pytest.raises(ProblemError, match="no operation 'fourth': it has"):
        network["fourth"]


def test_the_activation_after_a_layer():
    slopes = activations.PReLU([0.1, 0.2, 0.3])
    network = Network(
        [
            Dense(whole(4, 3), name="a"),
            Activate(slopes),
            Dense(whole(3, 3), name="b"),
            Dropout(),
            Activate("relu", name="twice"),
            Dense(whole(3, 3), name="c"),
            Activate("tanh", name="one"),
            Activate("relu", name="two", inputs="c"),
            Add(inputs=("one", "two")),
            Dense(whole(3, 2), name="d"),
        ]
    )
    after = {layer.name: network.activation_after(layer.name) for layer in network.layers}
    identity = activations.Identity()
    assert after == {"a": slopes, "b": activations.ReLU(), "c": identity, "d": identity}


def test_a_residual_network_folds_exactly():
    network = residual()
    folded = network.folded()
    assert "norm1" not in {op.name for op in folded.operations}
    assert folded["sum"].inputs == ("second", "start") and folded["start"].inputs == ("first",)
    np.testing.assert_array_equal(folded(IMAGES), network(IMAGES))
    assert folded.folded() is folded
    assert len(network.operations) == len(folded.operations) + 2


def test_only_what_is_exact_is_folded():
    def norm(name):
        return BatchNorm([2.0] * 3, [1.0] * 3, [0.0] * 3, [3.0] * 3, 1, name=name)

    network = Network(
        [
            Affine(0.5),
            norm("of the input"),
            Dense(whole(3, 3), name="shared"),
            norm("shared with a sum"),
            Add(inputs=("shared", "shared with a sum")),
            Activate("relu"),
            norm("behind an activation"),
            Dense(whole(3, 3), name="followed by two"),
            norm("n1"),
            norm("n2"),
        ]
    )
    folded = network.folded()
    names = {op.name for op in folded.operations if isinstance(op, BatchNorm)}
    assert names == {"of the input", "shared with a sum", "behind an activation"}
    assert folded.output.name == "followed by two"
    np.testing.assert_array_equal(folded(X[:, :3]), network(X[:, :3]))


def test_signals_come_in_order_and_are_freed():
    network = chain(4, 6, 5, 3)
    seen, alive = [], []
    for op, inputs, output in network.signals(X):
        np.testing.assert_array_equal(op.apply(*inputs), output)
        seen.append(op.name)
        alive.append(weakref.ref(output))
        # At most the output and the one before it: its input.
        assert [r() is not None for r in alive[:-2]] == [False] * (len(alive) - 2)
    assert seen == [op.name for op in network.operations]


def test_only_what_is_asked_for_is_computed():
    network = residual()
    outputs = {op.name: output for op, _, output in network.signals(IMAGES)}
    assert [op.name for op, _, _ in network.signals(IMAGES, until="norm1")] == ["first", "norm1"]
    found = network.outputs(IMAGES, ["input", "start", "norm2"])
    assert set(found) == {"input", "start", "norm2"}
    np.testing.assert_array_equal(found["input"], IMAGES)
    for name in ("start", "norm2"):
        np.testing.assert_array_equal(found[name], outputs[name])


def test_memory_does_not_grow_with_depth():
    import tracemalloc

    def peak(depth):
        network = chain(*[200] * depth, 2)
        samples = np.ones((500, 200))
        tracemalloc.start()
        network(samples, batch_size=500)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found / samples.nbytes

    # Output, three signals on the way, and blocks of the activations.
    assert peak(12) < TOLERANCE["memory"] * peak(4) < 6


# Weights ----------------------------------------------------------------------------------------


def test_replaced_weights_leave_the_original_alone():
    network = residual()
    before = network(IMAGES)
    W = np.zeros_like(network["last"].W)
    changed = network.replace({"last": (W, None), "second": (network["second"].W, np.ones(3))})
    assert changed["last"].nnz == 0 and changed["last"].sparsity == 1.0
    assert changed["last"].b is None and changed["second"].b.tolist() == [1, 1, 1]
    assert changed["third"].groups == 3 and changed["third"].name == "third"
    np.testing.assert_array_equal(changed(IMAGES), np.zeros((3, 4)))
    np.testing.assert_array_equal(network(IMAGES), before)
    assert network.n_weights - changed.n_weights == 0
    assert network.nnz - changed.nnz == np.count_nonzero(network["last"].W)


def test_replaced_weights_take_the_dtype_of_the_layer():
    network = chain(4, 3, dtype=np.float32)
    changed = network.replace({"dense_0": (whole(4, 3), whole(3))})
    assert changed.layers[0].W.dtype == changed.layers[0].b.dtype == np.float32


def test_an_operation_may_be_replaced_by_one_of_another_shape():
    network = chain(4, 6, 3)
    first, second = network.layers
    keep = [0, 2, 5]
    changed = network.replace(
        {"dense_0": Dense(first.W[:, keep], first.b[keep]), "dense_1": Dense(second.W[keep])}
    )
    hidden = np.maximum(X @ first.W + first.b, 0)[:, keep]
    np.testing.assert_array_equal(changed(X), hidden @ second.W[keep])


def test_counts_and_texts():
    network = Network([Dense([[1.0, 0.0], [0.0, 0.0]], name="only"), Softmax()])
    assert (network.nnz, network.n_weights, network.sparsity) == (1, 4, 0.75)
    assert repr(network) == "Network((2,) -> (2,), 2 operations, 1 layers, 1 of 4 weights)"
    assert "only" in network.summary() and "75.0" in network.summary()
    unknown = Network([Conv2d(np.ones((1, 1, 2, 2)))])
    assert unknown.shapes is None and "?" in unknown.summary()
    assert repr(unknown) == "Network(1 operations, 1 layers, 4 of 4 weights)"
    assert "1 -> 1, 2x2" in repr(unknown.layers[0])
    assert Network([Activate("relu")]).sparsity == 0.0


def test_the_input_shape_is_found_where_it_can_be():
    assert Network([Dropout(), Activate("relu"), Dense(whole(4, 2))]).input_shape == (4,)
    assert Network([Flatten(), Dense(whole(4, 2))]).input_shape is None
    network = Network([Conv2d(whole(2, 2, 3, 3)), Flatten()])
    assert network(IMAGES).shape == (3, 24)
    with pytest.raises(ProblemError, match=r"takes samples of shape \(2, height, width\)"):
        network(IMAGES[:, :1])


# Bad input --------------------------------------------------------------------------------------

W = np.ones((4, 3))
BAD = {
    "no chain": (
        lambda: Network([Dense(W, name="a"), Activate("relu"), Dense(W, name="b")]),
        r"operation 'b' \(dense\) takes samples of shape \(4,\), but gets \(3,\) from 'relu_0'",
    ),
    "input shape": (
        lambda: Network([Dense(W)], input_shape=(5,)),
        r"'dense_0' \(dense\) takes samples of shape \(4,\), but gets \(5,\) from 'input'",
    ),
    "dense on images": (
        lambda: Network([Dense(W)], input_shape=(4, 1, 1)),
        r"\(4,\), but gets \(4, 1, 1\)",
    ),
    "image too small": (
        lambda: Network([Conv2d(np.ones((1, 1, 3, 3)))], input_shape=(1, 2, 9)),
        r"images of at least \(3, 3\) with padding \(0, 0, 0, 0\), but gets \(2, 9\)",
    ),
    "no image": (
        lambda: Network([MaxPool2d(2)], input_shape=(5,)),
        r"takes samples of shape \(channels, height, width\), but gets \(5,\)",
    ),
    "sum of two shapes": (
        lambda: Network([Dense(W, name="a"), Add(inputs=("a", "input"))]),
        r"adds signals of one shape, but gets \(3,\) and \(4,\) from 'a', 'input'",
    ),
    "sum of one": (lambda: Network([Dense(W), Add()]), "adds two or more signals, but was given 1"),
    "two inputs": (
        lambda: Network([Dense(W, name="a"), Activate("relu", inputs=("a", "a"))]),
        r"operation 'relu_0' \(relu\) takes 1 input, but was given 2",
    ),
    "normalised channels": (
        lambda: Network([Dense(W), BatchNorm(*np.ones((4, 2)))]),
        r"takes samples of shape \(2, ...\), but gets \(3,\)",
    ),
    "slopes": (
        lambda: Network([Dense(W), Activate(activations.PReLU([0.1, 0.2]))]),
        r"operation 'prelu_0' \(prelu\): slopes .* must be one number or have shape \(3,\)",
    ),
    "reshape": (
        lambda: Network([Dense(W), Reshape((2, -1))]),
        r"that can be reshaped to \(2, -1\), but gets \(3,\)",
    ),
    "transpose": (
        lambda: Network([Dense(W), Transpose((1, 0))]),
        r"takes samples of shape with 2 axes, but gets \(3,\)",
    ),
    "softmax axis": (lambda: Network([Dense(W), Softmax(axis=1)]), "with an axis 1"),
    "same name": (
        lambda: Network([Dense(W, name="a"), Activate("relu", name="a")]),
        "operations must have names of their own, but another operation has 'a'",
    ),
    "named input": (lambda: Network([Dense(W, name="input")]), "the network's input has 'input'"),
    "unknown source": (
        lambda: Network([Dense(W, inputs="nothing")]),
        "takes its input from 'nothing', but there is none such",
    ),
    "later source": (
        lambda: Network([Add(inputs=("input", "b")), Dense(W, name="b")]),
        "operation 'add_0' takes its input from 'b', which stands behind it",
    ),
    "unused": (
        lambda: Network([Dense(W, name="a"), Dense(W, inputs="input")]),
        "nothing takes the output of 'a'",
    ),
    "empty": (lambda: Network([]), "operations must hold at least one operation"),
    "no operation": (lambda: Network([W]), "number 0 is a ndarray"),
    "input shape of a word": (lambda: Network([Flatten()], input_shape="ab"), "input_shape must"),
    "empty input shape": (lambda: Network([Flatten()], input_shape=()), "input_shape must hold"),
    "NaN": (
        lambda: Dense(np.full((4, 3), np.nan), name="a"),
        r"operation 'a' \(dense\): W must be finite, but holds 12 NaN",
    ),
    "infinite b": (lambda: Dense(W, [1, np.inf, 0]), "a dense operation: b must be finite"),
    "missing W": (lambda: Dense(None), "W must be an array of numbers, but was None"),
    "text": (lambda: Dense([["a"]]), "W must hold real numbers, but has dtype <U1"),
    "flat W": (lambda: Dense(np.ones(4)), r"W must have shape \(n_inputs, .* has \(4,\)"),
    "empty W": (lambda: Dense(np.ones((0, 3))), r"none of them 0, but has \(0, 3\)"),
    "length of b": (lambda: Dense(W, np.ones(4)), r"b must have shape \(3,\).* has \(4,\)"),
    "filters": (lambda: Conv2d(W), r"W must have shape \(n_filters, .*but has \(4, 3\)"),
    "variance": (
        lambda: BatchNorm([1.0], [1.0], [1.0], [-1.0]),
        "variance \\+ eps must be positive, but eps is 1e-05 and the least variance -1",
    ),
    "sizes": (
        lambda: BatchNorm([1.0], [1.0, 2.0], [1.0], [1.0]),
        r"vectors of one size, but shift has shape \(2,\)",
    ),
    "permutation": (lambda: Transpose((0, 2)), r"axes must be a permutation, but was \(0, 2\)"),
    "two free sizes": (lambda: Reshape((-1, -1)), "at most one -1"),
    "shape of words": (lambda: Reshape("ab"), "shape must be integers >= -1, but was 'ab'"),
    "activation": (lambda: Activate("relo"), "activation must be an Activation or one of"),
    "name": (lambda: Dropout(name=3), "name must be a string, but was 3"),
    "flag": (lambda: AveragePool2d(2, count_include_pad="no"), "must be True or False"),
    "width of X": (
        lambda: Network([Dense(W)])(np.ones((2, 5))),
        r"X must hold samples of shape \(4,\), but has shape \(2, 5\)",
    ),
    "one sample": (lambda: Network([Dense(W)])(np.ones(4)), r"\(n_samples, ...\), but has \(4,\)"),
    "complex X": (lambda: Network([Dense(W)])(np.ones((2, 4)) * 1j), "has dtype complex128"),
    "batch size": (lambda: Network([Dense(W)])(np.ones((2, 4)), 0), "batch_size must be"),
    "replaced shape": (
        lambda: Network([Dense(W)]).replace({"dense_0": (W.T, None)}),
        r"W must keep its shape \(4, 3\), but has \(3, 4\)",
    ),
    "replaced name": (lambda: Network([Dense(W)]).replace({"b": (W, None)}), "no operation 'b'"),
    "replaced activation": (
        lambda: Network([Dense(W), Activate()]).replace({"relu_0": (W, None)}),
        "is no layer",
    ),
    "replaced by an array": (
        lambda: Network([Dense(W)]).replace({"dense_0": W}),
        r"a pair \(W, b\) or an operation, but for 'dense_0' was given a ndarray",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_what_it_was(call, message):
    with pytest.raises(NettrimError, match=message):
        call()


def test_a_sparse_matrix_is_refused():
    import scipy.sparse

    with pytest.raises(ProblemError, match="X must be a dense array, but is scipy.sparse"):
        Network([Dense(W)])(scipy.sparse.csr_array(np.ones((2, 4))))


# PyTorch ----------------------------------------------------------------------------------------


def torch_modules(torch):
    """Modules with random weights, and the operations that should compute the same."""
    nn = torch.nn
    torch.manual_seed(0)
    numpy = lambda tensor: None if tensor is None else tensor.detach().numpy()  # noqa: E731

    def conv(*arguments, **options):
        module = nn.Conv2d(*arguments, **options)
        padding = options.get("padding", 0)
        return module, Conv2d(
            numpy(module.weight), numpy(module.bias), options.get("stride", 1), padding,
            options.get("dilation", 1), options.get("groups", 1),
        )  # fmt: skip

    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        norm(torch.randn(50, 6, 3, 3) * 3 + 1)
        norm.weight.uniform_(-1, 1)
    normalised = BatchNorm(*map(numpy, (norm.weight, norm.bias, norm.running_mean,
                                        norm.running_var)), norm.eps)  # fmt: skip
    prelu = nn.PReLU(6)
    with torch.no_grad():
        prelu.weight.uniform_(0.1, 0.9)
    linear = nn.Linear(6, 5)
    return [
        conv(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), bias=False),
        (prelu, Activate(activations.PReLU(numpy(prelu.weight)))),
        conv(6, 6, 3, padding="same", dilation=2, groups=3),
        (norm, normalised),
        (nn.MaxPool2d(3, 2, padding=1), MaxPool2d(3, 2, 1)),
        (nn.GELU(), Activate("gelu")),
        conv(6, 6, 3, padding=1, groups=6),
        (nn.AvgPool2d(3, 1, padding=1), AveragePool2d(3, 1, 1, count_include_pad=True)),
        (nn.AvgPool2d(2, 1, padding=1, count_include_pad=False), AveragePool2d(2, 1, 1)),
        (nn.SiLU(), Activate("silu")),
        (nn.AdaptiveAvgPool2d(1), GlobalAveragePool(keep_dims=True)),
        (nn.Flatten(), Flatten()),
        (linear, Dense(numpy(linear.weight).T, numpy(linear.bias))),
        (nn.Softmax(dim=1), Softmax()),
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("folded", [False, True])
def test_inference_agrees_with_pytorch(folded):
    torch = pytest.importorskip("torch")
    modules, operations = zip(*torch_modules(torch), strict=True)
    network = Network(operations, input_shape=(4, 16, 15))
    network = network.folded() if folded else network
    assert any(op.kind == "batch_norm" for op in network.operations) != folded
    samples = torch.randn(20, 4, 16, 15)
    reference = {}
    with torch.no_grad():
        signal = samples
        for place, module in enumerate(torch.nn.Sequential(*modules).eval()):
            signal = module(signal)
            reference[place] = signal.numpy()
    output = network(samples.numpy())
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, reference[13], atol=TOLERANCE["network_single"])
    # Every signal on the way, each relative to its largest entry.
    for place, (op, _, found) in enumerate(network.signals(samples.numpy())):
        if not folded:
            scale = np.abs(reference[place]).max()
            error = np.abs(found - reference[place]).max() / scale
            assert error < TOLERANCE["network_single"], op

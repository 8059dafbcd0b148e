"""Convolutions and poolings: naive loops, scipy, matrices of patches, and folding.

Entries are small integers wherever the answer is a sum of products: such sums are exact in any
order, so the comparisons are exact, too.
"""

import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.signal import correlate

from nettrim_solver.exceptions import ProblemError
from nettrim_solver.network import (
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    MaxPool2d,
    Network,
    operations,
    patches,
    same_padding,
)

from .tolerances import TOLERANCE


def whole_numbers(rng, *shape):
    return rng.integers(-4, 5, shape).astype(np.float64)


@st.composite
def windows(draw, most_dilation=2):
    """Keyword arguments of an operation with a window, and the size of the images."""
    size = st.tuples(st.integers(1, 7), st.integers(1, 7))
    step = st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = st.tuples(*[st.integers(0, 2)] * 4)
    return draw(size), {
        "stride": draw(step),
        "padding": draw(st.one_of(padding, st.integers(0, 2))),
        "dilation": draw(st.integers(1, most_dilation)),
    }


@st.composite
def convolutions(draw):
    """A layer with integer weights, and images for it."""
    (height, width), options = draw(windows())
    groups, channels, filters = (draw(st.integers(1, 3)) for _ in range(3))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    W = whole_numbers(rng, groups * filters, channels, *kernel)
    b = draw(st.sampled_from([None, whole_numbers(rng, len(W))]))
    layer = Conv2d(W, b, groups=groups, **options)
    assume(min(layer.window.output_size((height, width))) > 0)
    images = whole_numbers(rng, draw(st.integers(1, 3)), groups * channels, height, width)
    return layer, images


def seen(images, window, sample, channel, y, x):
    """What a window sees of one channel, as a list with None for padding."""
    top, left, _, _ = window.padding
    found = []
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            row = y * window.stride[0] + i * window.dilation[0] - top
            column = x * window.stride[1] + j * window.dilation[1] - left
            inside = 0 <= row < images.shape[2] and 0 <= column < images.shape[3]
            found.append(images[sample, channel, row, column] if inside else None)
    return found


def slow_pooling(images, window, reduce):
    """Apply `reduce` to the list that every window sees."""
    n, channels = images.shape[:2]
    places = window.output_size(images.shape[2:])
    output = np.empty((n, channels, *places))
    for index in np.ndindex(*output.shape):
        output[index] = reduce(seen(images, window, *index))
    return output


def slow_convolution(layer, images):
    """Multiply and add, one number after the other."""
    each_in, each_out = layer.W.shape[1], layer.n_outputs // layer.groups
    output = np.empty(
        (len(images), layer.n_outputs, *layer.window.output_size(images.shape[2:]))
    )  # fmt: skip
    for n, f, y, x in np.ndindex(*output.shape):
        total = 0.0 if layer.b is None else layer.b[f]
        for c in range(each_in):
            values = seen(images, layer.window, n, f // each_out * each_in + c, y, x)
            total += sum(w * v for w, v in zip(layer.W[f, c].flat, values, strict=True) if v)
        output[n, f, y, x] = total
    return output


# Convolution ------------------------------------------------------------------------------------


@given(convolutions())
def test_a_convolution_is_what_its_loops_compute(case):
    layer, images = case
    output = layer.apply(images)
    np.testing.assert_array_equal(output, slow_convolution(layer, images))
    assert output.shape[1:] == layer.output_shape(images.shape[1:])


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 2)])
def test_a_plain_convolution_is_scipys_correlation(kernel):
    rng = np.random.default_rng(1)
    images, W = whole_numbers(rng, 2, 3, 9, 8), whole_numbers(rng, 4, 3, *kernel)
    expected = [[correlate(image, filter_, "valid")[0] for filter_ in W] for image in images]
    np.testing.assert_array_equal(Conv2d(W).apply(images), expected)


@given(convolutions(), st.integers(1, 400))
def test_the_size_of_the_blocks_changes_nothing(case, entries):
    layer, images = case
    expected = layer.apply(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "BLOCK_ENTRIES", entries)
        np.testing.assert_array_equal(layer.apply(images), expected)


@given(convolutions())
def test_a_convolution_is_its_matrices(case):
    layer, images = case
    output = layer.apply(images)
    rows = np.arange(len(images) * layer.n_positions(images.shape[1:]))
    Z = np.hstack(
        [X @ W for X, W in zip(layer.input_rows(images, rows), layer.matrices(), strict=True)]
    )
    Z += 0.0 if layer.b is None else layer.b
    np.testing.assert_array_equal(layer.output_rows(output, rows), Z)
    for group in range(layer.n_groups):
        assert Z[:, layer.columns(group)].shape[1] == layer.matrices()[group].shape[1]


@given(convolutions(), st.randoms(use_true_random=False))
def test_chosen_rows_are_those_of_all_rows(case, random):
    layer, images = case
    n_rows = len(images) * layer.n_positions(images.shape[1:])
    chosen = np.array(sorted(random.sample(range(n_rows), random.randint(1, n_rows))))
    all_rows = layer.input_rows(images, np.arange(n_rows))
    for whole, part in zip(all_rows, layer.input_rows(images, chosen), strict=True):
        np.testing.assert_array_equal(part, whole[chosen])
    output = layer.apply(images)
    np.testing.assert_array_equal(
        layer.output_rows(output, chosen), layer.output_rows(output, np.arange(n_rows))[chosen]
    )


@given(convolutions())
def test_filters_come_back_from_their_matrices(case):
    layer, _ = case
    np.testing.assert_array_equal(layer.from_matrices(layer.matrices()), layer.W)


def test_a_dense_layer_has_the_same_view():
    rng = np.random.default_rng(2)
    layer, X = Dense(whole_numbers(rng, 5, 3)), whole_numbers(rng, 7, 5)
    rows = np.array([0, 4, 6])
    (chosen,), (W,) = layer.input_rows(X, rows), layer.matrices()
    np.testing.assert_array_equal(chosen @ W, layer.output_rows(layer.apply(X), rows))
    np.testing.assert_array_equal(layer.from_matrices([W]), layer.W)
    assert layer.n_positions((5,)) == layer.n_groups == 1


def test_gathered_rows_alias_nothing():
    images = np.ones((2, 1, 4, 4))
    for layer in (Conv2d(np.ones((1, 1, 1, 1))), Conv2d(np.ones((1, 1, 4, 4)))):
        (rows,) = layer.input_rows(images, np.arange(2))
        assert not np.shares_memory(rows, images)
    dense = Dense(np.eye(3))
    X = np.ones((2, 3))
    assert not np.shares_memory(dense.input_rows(X, np.arange(2))[0], X)


def test_a_convolution_never_holds_the_patch_matrix_even_of_one_image():
    images, layer = np.ones((1, 4, 200, 200), "f"), Conv2d(np.ones((1, 4, 7, 7), "f"))
    matrix = images.itemsize * 4 * 7 * 7 * 194 * 194
    tracemalloc.start()
    layer.apply(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < matrix / 10


def test_gathering_rows_never_makes_the_patch_matrix():
    images, layer = np.ones((8, 4, 64, 64), "f"), Conv2d(np.ones((2, 4, 9, 9)), padding="same")
    rows = np.arange(0, 8 * 64 * 64, 80)
    padded = images.itemsize * 8 * 4 * 72 * 72
    tracemalloc.start()
    (found,) = layer.input_rows(images, rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.nbytes < peak < TOLERANCE["memory"] * (found.nbytes + padded + 4 * rows.nbytes)


# Pooling ----------------------------------------------------------------------------------------


@given(windows(), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.booleans(), st.data())
def test_poolings_are_what_their_loops_compute(case, kernel, include, data):
    (height, width), options = case
    images = whole_numbers(np.random.default_rng(3), 2, 2, height, width)
    largest = MaxPool2d(kernel, **options)
    mean = AveragePool2d(kernel, count_include_pad=include, **options)
    window = largest.window
    assume(min(window.output_size((height, width))) > 0)
    if not window.counts((height, width)).all():
        with pytest.raises(ProblemError, match="every window must see a pixel"):
            largest.apply(images)
        return
    present = lambda values: [v for v in values if v is not None]  # noqa: E731
    divisor = (lambda values: len(values)) if include else (lambda values: len(present(values)))
    np.testing.assert_array_equal(
        largest.apply(images), slow_pooling(images, window, lambda v: max(present(v)))
    )
    np.testing.assert_array_equal(
        mean.apply(images),
        slow_pooling(images, window, lambda v: sum(present(v)) / divisor(v)),
    )


def test_the_stride_of_a_pooling_is_its_kernel_unless_given():
    assert MaxPool2d((2, 3)).stride == (2, 3)
    assert MaxPool2d(3, 1).stride == (1, 1)


# Geometry ---------------------------------------------------------------------------------------


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 3),
    st.booleans(),
)
def test_same_padding_keeps_the_size_over_the_stride(size, kernel, stride, dilation, upper):
    padding = same_padding(size, kernel, stride, dilation, upper=upper)
    window = MaxPool2d(kernel, stride, padding, dilation).window
    assert window.output_size(size) == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    top, left, bottom, right = padding
    for less, more in ((top, bottom), (left, right)):
        assert (0 <= more - less <= 1) if upper else (0 <= less - more <= 1)


def test_the_word_same_keeps_the_size():
    for kernel in (1, 2, 3, 4, 5):
        layer = Conv2d(np.ones((1, 1, kernel, kernel)), padding="same", dilation=2)
        assert layer.output_shape((1, 9, 7)) == (1, 9, 7)


def test_padding_may_be_given_in_every_form():
    pads = {n: Conv2d(np.ones((1, 1, 2, 2)), padding=n).padding for n in (0, 1)}
    assert pads == {0: (0, 0, 0, 0), 1: (1, 1, 1, 1)}
    assert Conv2d(np.ones((1, 1, 2, 2)), padding=(1, 2)).padding == (1, 2, 1, 2)
    assert Conv2d(np.ones((1, 1, 2, 2)), padding=[0, 1, 2, 3]).padding == (0, 1, 2, 3)
    assert Conv2d(np.ones((1, 1, 2, 2)), padding=np.int64(1)).padding == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "valid"}, "padding must be a number, a pair, .* but was 'valid'"),
        ({"padding": "same", "stride": 2}, r"needs stride 1, but stride was \(2, 2\)"),
        ({"padding": -1}, "padding must be 1 or 2 or 4 integers >= 0, but was -1"),
        ({"padding": (1, 2, 3)}, "padding must be"),
        ({"stride": 0}, "stride must be 1 or 2 integers >= 1, but was 0"),
        ({"stride": 1.5}, "stride must be"),
        ({"dilation": True}, "dilation must be"),
        ({"groups": 0}, "groups must be an integer >= 1, but was 0"),
        ({"groups": 3}, "groups must divide the 4 filters, but was 3"),
    ],
)
def test_bad_geometry_is_refused(options, message):
    with pytest.raises(ProblemError, match=message):
        Conv2d(np.ones((4, 1, 3, 3)), **options)


# Folding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [None, [2.0, -1.0, 3.0, 0.0]])
@pytest.mark.parametrize("groups", [1, 2])
def test_folding_is_exact_where_rounding_is(groups, b):
    rng = np.random.default_rng(4)
    # sqrt(variance + eps) is 2 and 4: every number has a few bits.
    norm = BatchNorm([1.0, 2.0, -3.0, 0.5], [1.0, 0.0, 2.0, -1.0], [1.0, 2.0, 3.0, 4.0],
                     [3.0, 15.0, 3.0, 15.0], eps=1.0)  # fmt: skip
    conv = Network([Conv2d(whole_numbers(rng, 4, 4 // groups, 3, 3), b, groups=groups), norm])
    images = whole_numbers(rng, 2, 4, 6, 6)
    np.testing.assert_array_equal(conv.folded()(images), conv(images))
    dense = Network([Dense(whole_numbers(rng, 6, 4), b), norm])
    X = whole_numbers(rng, 5, 6)
    np.testing.assert_array_equal(dense.folded()(X), dense(X))
    assert [op.kind for op in dense.folded().operations] == ["dense"]


def test_batch_norm_is_its_formula():
    rng = np.random.default_rng(5)
    scale, shift, mean = rng.standard_normal((3, 4))
    variance = rng.random(4)
    images = rng.standard_normal((3, 4, 2, 2))
    output = BatchNorm(scale, shift, mean, variance, eps=1e-3).apply(images)
    for c in range(4):
        expected = scale[c] * (images[:, c] - mean[c]) / np.sqrt(variance[c] + 1e-3) + shift[c]
        np.testing.assert_allclose(output[:, c], expected, rtol=0, atol=TOLERANCE["network_double"])


def test_blocks_of_elementwise_functions_cover_everything(monkeypatch):
    monkeypatch.setattr(operations, "BLOCK_ENTRIES", 7)
    X = whole_numbers(np.random.default_rng(6), 11, 3)
    np.testing.assert_array_equal(operations.Activate("relu").apply(X), np.maximum(X, 0))

"""Calibration data of every form, chosen rows, spilled signals, and the memory that they take."""

import errno
import os
import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver.exceptions import NettrimError, ProblemError
from nettrim_solver.network import (
    Activate,
    Add,
    Calibration,
    Concatenate,
    Conv2d,
    Dense,
    Embedding,
    Flatten,
    GlobalAveragePool,
    MaxPool2d,
    Network,
    Part,
    choose_rows,
    collect,
    collect_bytes,
    spill,
)

from .helpers import prune

RNG = np.random.default_rng(8)


def whole(*shape):
    """Small integers: sums of their products are exact in any order."""
    return RNG.integers(-3, 4, shape).astype(np.float64)


CHAIN = Network([Dense(whole(4, 6), whole(6)), Activate("relu"), Dense(whole(6, 3), name="last")])
CONVOLUTIONS = Network(
    [
        Conv2d(whole(4, 2, 3, 3), whole(4), padding=1, name="first"),
        Activate("relu", name="relu"),
        Conv2d(whole(4, 2, 3, 2), whole(4), padding=1, groups=2, stride=2, name="second"),
        Add(inputs=("second", "second"), name="twice"),
        MaxPool2d(2),
        Flatten(),
        Dense(whole(4, 3), name="last"),
    ],
    input_shape=(2, 5, 4),
)
X = whole(23, 4)
IMAGES = whole(23, 2, 5, 4)

FORMS = {
    "array": lambda data: data,
    "list of batches": lambda data: [data[:5], data[5:5], data[5:16], data[16:]],
    "tuple of batches": lambda data: (data[:20], data[20:]),
    "generator": lambda data: (data[i : i + 4] for i in range(0, len(data), 4)),
    "batches with labels": lambda data: [[data[:9], np.zeros(9)], (data[9:], None)],
    "reader": lambda data: Reader(data),
}


class Reader:
    """Batches in another order each time, as a shuffling data loader gives them."""

    def __init__(self, data):
        self.data, self.passes = data, 0

    def __iter__(self):
        self.passes += 1
        order = np.arange(len(self.data)) if self.passes == 1 else np.arange(len(self.data))[::-1]
        return (self.data[order[i : i + 6]] for i in range(0, len(self.data), 6))


def everything(calibration):
    return np.concatenate(list(calibration.batches()))


# Forms of data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_all_forms_give_the_same_samples_every_time(form, batch_size):
    calibration = Calibration(form(X), CHAIN, batch_size=batch_size)
    assert (len(calibration), calibration.n_samples) == (23, 23)
    assert calibration.sample_shape == (4,) and calibration.dtype == np.float64
    for _ in range(2):
        np.testing.assert_array_equal(everything(calibration), X)
    assert max(len(batch) for batch in calibration.batches()) <= batch_size
    assert repr(calibration) == "Calibration(23 samples of shape (4,), float64)"


def test_a_memory_map_is_read_batch_by_batch(tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    calibration = Calibration(mapped, CHAIN, batch_size=10)
    assert all(np.shares_memory(batch, mapped) for batch in calibration.batches())
    np.testing.assert_array_equal(everything(calibration), X)


def test_an_array_is_kept_as_a_view_and_its_dtype_as_it_is():
    pixels = RNG.integers(0, 255, (9, 4)).astype(np.uint8)
    calibration = Calibration(pixels, CHAIN)
    assert calibration.dtype == np.uint8
    assert all(np.shares_memory(batch, pixels) for batch in calibration.batches())
    signals = collect(CHAIN.astype(np.float32), "last", calibration)
    assert signals.Z.dtype == np.float32


def test_without_a_network_the_first_batch_tells_the_shape():
    assert Calibration([IMAGES]).sample_shape == (2, 5, 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("rows", [np.ndarray.tolist, list, lambda X: tuple(map(list, X))])
def test_a_list_of_rows_is_an_array(rows):
    X = np.arange(12.0).reshape(4, 3)
    (batch,) = Calibration(rows(X)).batches()
    np.testing.assert_array_equal(batch, X)


def test_a_table_is_an_array_if_it_holds_numbers():
    pandas = pytest.importorskip("pandas")
    X = np.arange(12.0).reshape(4, 3)
    (batch,) = Calibration(pandas.DataFrame(X, columns=list("abc"))).batches()
    np.testing.assert_array_equal(batch, X)
    with pytest.raises(ProblemError, match="must hold real numbers, but has dtype object"):
        Calibration(pandas.DataFrame({"a": [1.0], "b": ["one"]}))


def test_tensors_and_a_data_loader_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = torch.utils.data.TensorDataset(torch.tensor(X), torch.zeros(23))
    loader = torch.utils.data.DataLoader(tensors, batch_size=5)
    for data in (loader, torch.tensor(X), list(torch.tensor(X).split(9))):
        np.testing.assert_array_equal(everything(Calibration(data, CHAIN, spill=tmp_path)), X)
    with pytest.raises(ProblemError, match=r"that numpy cannot read: .*give tensor.detach\(\)"):
        Calibration(torch.tensor(X, requires_grad=True), CHAIN)


BAD = {
    "width": (X[:, :3], r"the calibration data must have shape \(n_samples, 4\), .* \(23, 3\)"),
    "one sample": (X[0], r"must have shape \(n_samples, 4\), but has shape \(4,\)"),
    "second batch": ([X, X[:, :3]], r"batch 1 of the calibration data must .* \(23, 3\)"),
    "generated batch": (iter([X, X[:, :3]]), r"batch 1 of the calibration data must"),
    "NaN": (np.where(X == 0, np.nan, X), f"must be finite, but holds {np.sum(X == 0)} NaN or inf"),
    "infinite in two batches": ([X, np.inf * np.ones((2, 4))], "holds 8 NaN or infinite"),
    "generated NaN": (iter([X, np.nan * np.ones((2, 4))]), "holds 8 NaN"),
    "no samples": (X[:0], "must hold samples, but is empty"),
    "no batches": ([], "must hold samples, but is empty"),
    "no generated batches": (iter(()), "must hold samples, but is empty"),
    "empty generated batches": (iter([X[:0]]), "must hold samples, but is empty"),
    "two dtypes": ([X, X.astype("f")], "batch 1 .* dtype of those before it, float64, but has fl"),
    "complex": (X * 1j, "must hold real numbers, but has dtype complex128"),
    "objects": (X.astype(object), "must hold real numbers, but has dtype object"),
    "images instead of batches": ([np.ones((1, 4)), np.ones(4)], r"batch 1 .*has shape \(4,\)"),
    "ragged": ([[[1.0, 2.0], [3.0]]], "batch 0 of the calibration data must be an array of numb"),
    "ragged rows": ([[1.0, 2.0], [3.0]], "^the calibration data must be an array of numbers"),
    "a path": ("data.npy", "must be an array or an iterable of batches, but was a str"),
    "a mapping": ({"input": X}, "but was a dict"),
    "a number": (3, "but was a int"),
    "sparse": (scipy.sparse.csr_array(X), "but was a csr_array"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_bad_data_is_refused_with_what_it_was(data, message):
    with pytest.raises(ProblemError, match=message):
        Calibration(data, CHAIN)


def test_data_is_checked_against_a_network_without_an_input_shape():
    network = Network([Conv2d(whole(1, 2, 3, 3)), Flatten(), Dense(whole(6, 2))])
    assert network.input_shape is None
    assert Calibration(IMAGES, network).sample_shape == (2, 5, 4)
    with pytest.raises(ProblemError, match=r"takes samples of shape \(6,\), but gets \(2,\)"):
        Calibration(IMAGES[:, :, :3], network)


# Rows -------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 400), st.integers(0, 5))
def test_chosen_rows_are_sorted_distinct_and_reproducible(n_rows, cap, seed):
    rows = choose_rows(n_rows, cap, seed)
    assert len(rows) == min(n_rows, cap) and rows.dtype == np.int64
    assert np.all(np.diff(rows) > 0) and rows[0] >= 0 and rows[-1] < n_rows
    np.testing.assert_array_equal(rows, choose_rows(n_rows, cap, seed))


def test_every_row_has_the_same_chance():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[choose_rows(20, 5, seed)] += 1
    # Mean 500, standard deviation sqrt(2000 / 4 * 3 / 4) = 19.
    assert np.all(np.abs(counts - 500) < 5 * 19)


def test_bad_settings_are_refused():
    with pytest.raises(NettrimError, match="max_rows must be an integer >= 1, but was 0"):
        choose_rows(5, 0, 0)
    with pytest.raises(NettrimError, match="seed must be an integer >= 0, but was 'x'"):
        choose_rows(5, 2, "x")
    with pytest.raises(NettrimError, match="batch_size must be an integer >= 1, but was 0"):
        Calibration(X, batch_size=0)
    with pytest.raises(ProblemError, match="is no layer"):
        collect(CHAIN, "relu_0", Calibration(X))


# Signals of a layer -----------------------------------------------------------------------------


def whole_signals(network, name, samples):
    """All rows of a layer at once, patches cut out one by one."""
    outputs = {op.name: (inputs, output) for op, inputs, output in network.signals(samples)}
    (signal,), Z = outputs[name][0], outputs[name][1]
    layer = network.layer(name)
    if isinstance(layer, Dense):
        return [signal], Z
    top, left, bottom, right = layer.padding
    padded = np.pad(signal, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (kh, kw), (sh, sw) = layer.W.shape[2:], layer.stride
    n, height, width = len(Z), *Z.shape[2:]
    each = layer.W.shape[1]
    X = [
        np.array(
            [
                padded[
                    i, g * each : (g + 1) * each, y * sh : y * sh + kh, x * sw : x * sw + kw
                ].ravel()
                for i in range(n)
                for y in range(height)
                for x in range(width)
            ]
        )
        for g in range(layer.groups)
    ]
    return X, Z.transpose(0, 2, 3, 1).reshape(-1, layer.n_outputs)


CASES = [(CHAIN, "dense_0", X), (CHAIN, "last", X), (CONVOLUTIONS, "first", IMAGES),
         (CONVOLUTIONS, "second", IMAGES), (CONVOLUTIONS, "last", IMAGES)]  # fmt: skip


@pytest.mark.parametrize(("network", "name", "samples"), CASES)
@pytest.mark.parametrize("max_rows", [None, 1, 10, 150])
@pytest.mark.parametrize("batch_size", [3, 100])
@pytest.mark.parametrize("spilled", [False, True])
def test_collected_signals_are_rows_of_the_whole_matrices(
    network, name, samples, max_rows, batch_size, spilled, tmp_path
):
    data = Calibration(samples, network, batch_size=batch_size)
    folder = tmp_path if spilled else None
    signals = collect(network, name, data, max_rows=max_rows, seed=3, spill=folder)
    X, Z = whole_signals(network, name, samples)
    np.testing.assert_array_equal(signals.rows, choose_rows(len(Z), max_rows, 3))
    np.testing.assert_array_equal(signals.Z, Z[signals.rows])
    assert len(signals.X) == len(X) == network.layer(name).n_groups
    for found, expected in zip(signals.X, X, strict=True):
        np.testing.assert_array_equal(found, expected[signals.rows])
    for array in (*signals.X, signals.Z):
        assert not array.flags.writeable and not np.shares_memory(array, samples)
    assert os.listdir(tmp_path) == []


def test_blocks_of_rows_change_nothing(monkeypatch):
    from nettrim_solver.network import operations

    data = Calibration(IMAGES, CONVOLUTIONS)
    expected = collect(CONVOLUTIONS, "second", data)
    monkeypatch.setattr(operations, "BLOCK_ENTRIES", 50)
    found = collect(CONVOLUTIONS, "second", data)
    np.testing.assert_array_equal(found.Z, expected.Z)
    for one, other in zip(found.X, expected.X, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("max_rows", [None, 60])
def test_in_a_cascade_the_rows_are_the_same_and_the_targets_original(max_rows):
    first = CONVOLUTIONS.layer("first")
    pruned = CONVOLUTIONS.replace({"first": (np.where(first.W > 1, first.W, 0), None)})
    data = Calibration(IMAGES, CONVOLUTIONS, batch_size=4)
    mixed = collect(pruned, "second", data, original=CONVOLUTIONS, max_rows=max_rows)
    before = collect(CONVOLUTIONS, "second", data, max_rows=max_rows)
    after = collect(pruned, "second", data, max_rows=max_rows)
    np.testing.assert_array_equal(mixed.rows, before.rows)
    np.testing.assert_array_equal(mixed.Z, before.Z)
    assert np.any(mixed.Z != after.Z)
    for one, other in zip(mixed.X, after.X, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_matrix_form_of_the_layer_holds_on_the_rows():
    signals = collect(CONVOLUTIONS, "second", Calibration(IMAGES), max_rows=40)
    layer = signals.layer
    for group, (rows, W) in enumerate(zip(signals.X, layer.matrices(), strict=True)):
        columns = layer.columns(group)
        np.testing.assert_array_equal(rows @ W + layer.b[columns], signals.Z[:, columns])


def test_batches_without_a_chosen_row_are_not_computed():
    calls = []

    class Counted(Network):
        def outputs(self, X, names):
            calls.append(len(X))
            return super().outputs(X, names)

    network = Counted(CHAIN.operations)
    collect(network, "last", Calibration(X, batch_size=4), max_rows=2, seed=0)
    assert 1 <= len(calls) <= 2 and sum(calls) == 2


# Spills -----------------------------------------------------------------------------------------


def test_an_iterable_is_read_once_and_leaves_no_file(tmp_path):
    reader = Reader(X)
    calibration = Calibration(reader, CHAIN, spill=tmp_path)
    assert reader.passes == 1 and os.listdir(tmp_path) == []
    np.testing.assert_array_equal(everything(calibration), X)
    np.testing.assert_array_equal(everything(calibration), X)
    assert reader.passes == 1


def test_nothing_is_left_when_the_data_breaks_off(tmp_path):
    def broken():
        yield X
        raise OSError("the disk with the data is gone")

    open_files = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    with pytest.raises(OSError, match="the disk with the data is gone"):
        Calibration(broken(), CHAIN, spill=tmp_path)
    assert os.listdir(tmp_path) == []
    if open_files:
        assert set(os.listdir("/proc/self/fd")) == open_files


@pytest.mark.parametrize("call", ["calibration", "collect"])
def test_a_folder_that_cannot_be_written_is_named(call, tmp_path):
    with pytest.raises(ProblemError, match="spill must be a folder .*'.*missing': No such file"):
        if call == "calibration":
            Calibration(iter([X]), CHAIN, spill=tmp_path / "missing")
        else:
            collect(CHAIN, "last", Calibration(X), spill=tmp_path / "missing")


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    class Full:
        """A file on a disk with room for 1000 bytes."""

        def __init__(self, file):
            self.file, self.written = file, 0

        def write(self, data):
            self.written += memoryview(data).nbytes
            if self.written > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    make = spill.tempfile.TemporaryFile
    monkeypatch.setattr(spill.tempfile, "TemporaryFile", lambda **o: Full(make(**o)))
    data = Calibration(whole(500, 4), CHAIN)
    with pytest.raises(ProblemError, match="room for temporary files, .* No space left on device"):
        collect(CHAIN, "last", data, spill=tmp_path)
    assert os.listdir(tmp_path) == []


def test_spilled_signals_outlive_their_file_and_travel_to_other_processes(tmp_path):
    signals = collect(CHAIN, "last", Calibration(X), spill=tmp_path)
    assert not isinstance(signals.Z, np.memmap)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(signals)).Z, signals.Z)


# Memory -----------------------------------------------------------------------------------------


def large_case(kind, n_samples):
    """A network whose signals are much larger than its weights, and samples for it."""
    if kind == "dense":
        network = Network([Dense(np.ones((20, 400), "f")), Activate("tanh"),
                           Dense(np.ones((400, 300), "f"), name="at hand")])  # fmt: skip
        return network, np.ones((n_samples, 20), "f")
    network = Network(
        [
            Conv2d(np.ones((8, 2, 3, 3), "f"), padding=1, name="a"),
            Activate("relu", name="b"),
            Conv2d(np.ones((8, 8, 3, 3), "f"), padding="same"),
            Add(inputs=("b", "conv2d_0")),
            Conv2d(np.ones((8, 4, 5, 5), "f"), groups=2, padding=2, name="at hand"),
        ],
        input_shape=(2, 24, 24),
    )
    return network, np.ones((n_samples, 2, 24, 24), "f")


def peak_memory(call):
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, result


@pytest.mark.parametrize("kind", ["dense", "images"])
@pytest.mark.parametrize("spilled", [False, True])
@pytest.mark.parametrize("max_rows", [None, 2000])
def test_the_memory_stays_below_the_stated_bound(kind, spilled, max_rows, tmp_path):
    network, samples = large_case(kind, 300 if kind == "images" else 12_000)
    data = Calibration(samples, network, batch_size=100)
    bound = collect_bytes(network, "at hand", data, max_rows=max_rows, spilled=spilled)
    peak, signals = peak_memory(
        lambda: collect(
            network, "at hand", data, max_rows=max_rows, spill=tmp_path if spilled else None
        )
    )
    assert peak <= bound
    stored = sum(part.nbytes for part in (*signals.X, signals.Z))
    assert spilled or peak >= stored
    if max_rows is None and spilled:
        # What is spilled, and the signals of all samples, are larger than all that was in memory.
        assert peak < stored


def test_the_memory_does_not_grow_with_the_samples(tmp_path):
    peaks = []
    for n_samples in (1000, 8000):
        network, samples = large_case("dense", n_samples)
        data = Calibration(samples, network, batch_size=100)
        peaks.append(
            peak_memory(lambda: collect(network, "at hand", data, max_rows=500))[0]  # noqa: B023
        )
    assert peaks[1] - peaks[0] < 400 * 500


def test_a_generator_is_not_held_in_memory(tmp_path):
    batch = np.ones((100, 1000))
    peak, calibration = peak_memory(
        lambda: Calibration((batch + i for i in range(50)), batch_size=100, spill=tmp_path)
    )
    assert calibration.n_samples == 5000
    assert peak < 4 * batch.nbytes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entries_whose_squares_overflow_are_refused(dtype):
    data = np.ones((5, 2), dtype=dtype)
    data[3, 1] = -2.0 * np.sqrt(np.finfo(dtype).max)
    with pytest.raises(ProblemError, match="squares are finite, but one has"):
        Calibration(data)
    data[3, 1] = -0.5 * np.sqrt(np.finfo(dtype).max)
    assert Calibration(data).n_samples == 5


def test_double_samples_of_a_single_network_may_be_as_large_as_double_ones():
    X = 1e25 * RNG.standard_normal((40, 4))
    network = Network([Dense(RNG.standard_normal((4, 3)).astype(np.float32))])
    with pytest.raises(ProblemError, match="squares are finite"):
        Calibration(X.astype(np.float32), network)
    result = prune(network, X, tolerance=0.2)
    assert result.sparsity > 0 and result.output_error <= result.output_bound < 0.21


def test_samples_without_entries_are_refused():
    with pytest.raises(ProblemError, match="must hold samples"):
        Calibration(np.empty((5, 0)))


def test_calibration_data_of_another_network_are_refused_before_work():
    network = Network([GlobalAveragePool(), Dense(np.ones((2, 3)), name="d")], (2, 8, 8))
    with pytest.raises(
        ProblemError, match=r"^X: .*samples of shape \(2, 8, 8\), but .*\(2, 6, 6\)"
    ):
        prune(network, Calibration(np.ones((5, 2, 6, 6))), nnz=3)


@pytest.mark.parametrize("argument", ["X", "X_heldout"])
def test_numbers_in_no_table_are_found_before_any_layer_is_pruned(argument):
    shapes, pruned = [(4,), (2,)], []
    network = Network([
        Part(shapes, 0), Dense(RNG.standard_normal((4, 3)), name="first"),
        Part(shapes, 1, inputs="input"), Embedding(np.ones((5, 2))), Flatten(),
        Concatenate(inputs=("first", "flatten_0")), Dense(RNG.standard_normal((7, 2)), name="last"),
    ])  # fmt: skip
    X = np.concatenate([RNG.standard_normal((30, 4)), RNG.integers(0, 5, (30, 2))], axis=1)
    beyond = X.copy()
    beyond[7, 5] = 5
    given = {"X": X, "X_heldout": X, argument: beyond}
    with pytest.raises(ProblemError, match=f"^{argument}: .*whole numbers from 0 to 4, but gets 5"):
        prune(network, tolerance=0.1, callback=pruned.append, **given)
    assert not pruned

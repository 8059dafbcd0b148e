"""Arrays of other kinds than plain ones, wherever a network takes some."""

import re
import warnings

import numpy as np
import pytest

from nettrim_solver.checks import layout_remedy, printable
from nettrim_solver.exceptions import ProblemError
from nettrim_solver.frameworks import (
    calibration_batches,
    calibration_inputs,
    from_npz,
    from_sklearn,
    join_inputs,
)
from nettrim_solver.network import BatchNorm, Calibration, Conv2d, Dense, Embedding, Network
from nettrim_solver.storage import pack

from .helpers import prune

RNG = np.random.default_rng(3)
X = RNG.standard_normal((40, 4))
NETWORK = Network([Dense(RNG.standard_normal((4, 3)), np.ones(3))], (4,))
HIDDEN = np.ma.masked_greater(np.where(X > 1.5, 1e36, X), 1e30)


def perceptron(samples):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    model = MLPRegressor(hidden_layer_sizes=(6,), max_iter=20, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(samples, np.asarray(samples, dtype=float)[:, 0])


# Masked arrays -----------------------------------------------------------------------------------

MASKED = {
    "calibration data": lambda: prune(NETWORK, HIDDEN, tolerance=0.1),
    "held-out data": lambda: prune(NETWORK, X, X_heldout=HIDDEN, tolerance=0.1),
    "batches": lambda: Calibration([X, HIDDEN]),
    "generated batches": lambda: Calibration(iter([(HIDDEN, np.zeros(40))])),
    "a list of rows": lambda: Calibration([*HIDDEN]),
    "samples of a network": lambda: NETWORK(HIDDEN),
    "a list of samples": lambda: NETWORK([*HIDDEN]),
    "several inputs": lambda: join_inputs(X, HIDDEN),
    "weights": lambda: Dense(HIDDEN.T),
    "an intercept": lambda: Dense(X.T, np.ma.masked_less(np.ones(40), 2)),
    "filters": lambda: Conv2d(HIDDEN.reshape(40, 1, 2, 2)),
    "statistics": lambda: BatchNorm(np.ones(4), np.ones(4), HIDDEN[0], np.ones(4)),
    "a table": lambda: Embedding(HIDDEN),
    "arrays by name": lambda: from_npz({"W0": HIDDEN.T, "b0": np.zeros(40)}),
    "an array to store": lambda: pack(HIDDEN),
    "an estimator's samples": lambda: calibration_inputs(perceptron(X), HIDDEN),
}


@pytest.mark.parametrize("kind", MASKED)
def test_masks_that_hide_anything_are_refused(kind):
    with pytest.raises(ProblemError, match=r"masked.*numpy\.ma\.filled"):
        MASKED[kind]()


def test_masks_that_hide_nothing_pass():
    whole = np.ma.masked_greater(X, 1e30)
    np.testing.assert_array_equal(NETWORK(whole), NETWORK(X))
    (batch,) = Calibration(whole).batches()
    assert type(batch) is np.ndarray
    np.testing.assert_array_equal(batch, X)


@pytest.mark.parametrize("way", [lambda A: np.ma.filled(A, 0), np.ma.compress_rows])
def test_the_way_out_of_a_mask_is_one(way):
    assert len(Calibration(way(HIDDEN), NETWORK)) in (40, int((~HIDDEN.mask.any(1)).sum()))


# Tables ------------------------------------------------------------------------------------------


def tables():
    pandas = pytest.importorskip("pandas")
    numbers = {"a": [0.5, 1.5, -2.0, 4.0], "b": [1, 2, 3, 4], "d": [7.0, 5.0, 6.0, 1.0]}
    flags = [True, False, False, True]
    dtypes = {"d": "float32"}
    return {
        "mixed": pandas.DataFrame({**numbers, "c": [1, 0, 0, 1]}).astype({"b": "int8", **dtypes}),
        "booleans": pandas.DataFrame({**numbers, "c": flags}),
        "nullable": pandas.DataFrame({**numbers, "c": flags}).convert_dtypes(),
        "objects": pandas.DataFrame({**numbers, "c": flags}).astype(object),
        "dummies": pandas.get_dummies(
            pandas.DataFrame({**numbers, "kind": ["no", "yes", "yes", "no"]})
        ).drop(columns="kind_yes"),
    }


@pytest.mark.parametrize("kind", ["mixed", "booleans", "nullable", "objects", "dummies"])
def test_tables_of_numbers_of_any_kind_are_read(kind):
    table = tables()[kind]
    expected = np.column_stack([np.asarray(table[name], dtype=float) for name in table])
    order = [*"abd", table.columns[-1]]
    for found in (
        np.concatenate([*Calibration(table).batches()]),
        np.concatenate([*Calibration(iter([table])).batches()]),
        calibration_inputs(perceptron(table.astype(float)), table),
        join_inputs(table),
        NETWORK.prepare(table),
    ):
        assert [*table.columns] == order
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(NETWORK(table), NETWORK(expected))


def test_tables_with_missing_entries_or_text_are_refused():
    pandas = pytest.importorskip("pandas")
    table = tables()["nullable"]
    table.loc[1, "a"] = pandas.NA
    with pytest.raises(ProblemError, match="must be finite, but holds 1 NaN"):
        Calibration(table, NETWORK)
    with pytest.raises(ProblemError, match=r"columns \['c'\] hold something else; drop or encode"):
        Calibration(table.assign(c=["one", "two", "three", "four"]), NETWORK)


def test_columns_in_another_order_than_at_the_fit_are_refused():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=list("abcd"))
    model = perceptron(table)
    turned = table[list("badc")]
    with pytest.raises(ProblemError, match=r"X\[list\(estimator\.feature_names_in_\)\]"):
        calibration_inputs(model, turned)
    found = calibration_inputs(model, turned[list(model.feature_names_in_)])
    np.testing.assert_array_equal(found, X)
    np.testing.assert_allclose(from_sklearn(model)(found)[:, 0], model.predict(table))
    with pytest.raises(ProblemError, match=r"became .*'e'"):
        calibration_inputs(model, table.rename(columns={"b": "e"}))
    with pytest.raises(ProblemError, match="must have 4 columns, but has 3"):
        calibration_inputs(model, table[list("abc")])
    np.testing.assert_array_equal(calibration_inputs(model, X), X)


# Tensors -----------------------------------------------------------------------------------------

torch_only = pytest.mark.filterwarnings("ignore")


def tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        plain = torch.tensor(X, dtype=torch.float32)
        return {
            "gradient": (plain.clone().requires_grad_(), r"\.detach\(\)"),
            "bfloat16": (plain.bfloat16(), r"\.float\(\)"),
            "sparse": (plain.to_sparse(), r"\.to_dense\(\)"),
            "sparse rows": (plain.to_sparse_csr(), r"\.to_dense\(\)"),
            "all of them": (
                plain.bfloat16().to_sparse().requires_grad_(),
                r"\.detach\(\)\.to_dense\(\)\.float\(\)",
            ),
        }


TAKERS = {
    "calibration data": lambda given: Calibration(given),
    "batches": lambda given: Calibration(iter([given])),
    "samples": lambda given: NETWORK(given),
    "weights": lambda given: Dense(given),
    "several inputs": lambda given: join_inputs(given),
}


@torch_only
@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", ["gradient", "bfloat16", "sparse", "sparse rows", "all of them"])
def test_tensors_that_numpy_does_not_take_say_what_to_call(kind, taker):
    given, steps = tensors()[kind]
    with pytest.raises(ProblemError, match=steps + "$") as caught:
        TAKERS[taker](given)
    named = re.search(r"give tensor((\.\w+\(\))+)", str(caught.value))[1]
    assert TAKERS[taker](eval(f"given{named}", {"given": given})) is not None


@torch_only
@pytest.mark.parametrize("kind", ["gradient", "bfloat16", "sparse", "sparse rows", "all of them"])
def test_batches_of_a_loader_may_be_any_tensors(kind):
    given, _ = tensors()[kind]
    (found,) = calibration_batches([given])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, X, rtol=2**-8)


# Batches and layouts -----------------------------------------------------------------------------


@torch_only
def test_batches_that_are_dictionaries_say_who_takes_them_apart():
    batches = [{"pixels": X[:20], "label": np.zeros(20)}, {"pixels": X[20:], "label": np.ones(20)}]
    with pytest.raises(ProblemError, match=r"calibration_batches\(batches, inputs=\['pixels'\]\)"):
        Calibration(iter(batches), NETWORK)
    with pytest.raises(ProblemError, match="keys are .*'pixels'"):
        Calibration(calibration_batches(iter(batches)), NETWORK)
    found = Calibration(calibration_batches(iter(batches), inputs=["pixels"]), NETWORK)
    np.testing.assert_array_equal(np.concatenate([*found.batches()]), X)


def test_images_in_another_order_are_transposed_and_not_reshaped():
    images = RNG.standard_normal((5, 8, 6, 3))
    network = Network([Conv2d(RNG.standard_normal((2, 3, 3, 3)), name="c")], (3, 8, 6))
    for call in (lambda: prune(network, images, tolerance=0.1), lambda: network(images)):
        with pytest.raises(ProblemError, match=r"moveaxis\(X, -1, 1\)") as caught:
            call()
        assert "reshape" not in str(caught.value)
    assert network(np.moveaxis(images, -1, 1)).shape == (5, 2, 6, 4)


@pytest.mark.parametrize(
    ("given", "wanted", "remedy"),
    [
        ((8, 6, 3), (3, 8, 6), "moveaxis(X, -1, 1)"),
        ((3, 8, 6), (8, 6, 3), "moveaxis(X, 1, -1)"),
        ((8, 8), (1, 8, 8), "X.reshape(-1, 1, 8, 8)"),
        ((8, 8, 1), (64,), "X.reshape(-1, 64)"),
        ((192,), (3, 8, 8), "if pixels and channels"),
        ((8, 6, 3), (6, 8, 3), ""),
        ((4,), (5,), ""),
    ],
)
def test_remedies_of_layouts(given, wanted, remedy):
    found = layout_remedy(given, wanted)
    assert remedy in found and bool(found) == bool(remedy)


def test_names_are_printed_without_escape_sequences():
    assert printable("fc\x1b[2J\x07\u202e\u00e9") == "fc\\x1b[2J\\x07\\u202e\u00e9"


def test_a_summary_holds_no_escape_sequences():
    network = Network([Dense(np.eye(3), name="fc\x1b[2J")])
    assert "fc\\x1b[2J" in network.summary() and "\x1b" not in network.summary()

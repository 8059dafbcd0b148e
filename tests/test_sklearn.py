"""scikit-learn: networks of fitted perceptrons, and pruned perceptrons back."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import BaggingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nettrim_solver.exceptions import ProblemError
from nettrim_solver.frameworks import calibration_inputs, from_sklearn, to_sklearn

from .helpers import prune
from .tolerances import TOLERANCE

RNG = np.random.default_rng(4)
X = RNG.standard_normal((150, 5)) * [1, 2, 3, 4, 5] + 1
TARGETS = {
    "regressor": X[:, 0] * X[:, 1],
    "regressor, two outputs": X[:, :2] ** 2,
    "two classes": X[:, 0] > 1,
    "three classes": np.digitize(X[:, 1], [0, 2]),
    "labels": (X[:, :3] > 1).astype(int),
}


def fitted(kind, activation="relu", dtype=np.float64):
    maker = MLPRegressor if kind.startswith("regressor") else MLPClassifier
    model = maker(hidden_layer_sizes=(12, 7), activation=activation, max_iter=15, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X.astype(dtype), TARGETS[kind])


def outputs(model, samples, n_columns):
    if not hasattr(model, "predict_proba"):
        return model.predict(samples).reshape(len(samples), -1)
    return model.predict_proba(samples)[:, -n_columns:]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_the_network_predicts_as_the_estimator_does(kind, activation):
    model = fitted(kind, activation)
    expected = from_sklearn(model)(X)
    found = outputs(model, X, expected.shape[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE["network_double"])


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_pruned_estimator_predicts_as_the_pruned_network_does(kind, sparse):
    model = fitted(kind)
    before = [W.copy() for W in model.coefs_]
    network = prune(from_sklearn(model), X, tolerance=0.2).network
    assert network.nnz < from_sklearn(model).nnz
    pruned = to_sklearn(model, network, sparse=sparse)
    pruned = pickle.loads(pickle.dumps(pruned))
    assert all(sp.issparse(W) == sparse for W in pruned.coefs_)
    expected = network(X)
    found = outputs(pruned, X, expected.shape[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE["network_double"])
    for old, W in zip(before, model.coefs_, strict=True):
        np.testing.assert_array_equal(old, W)
    assert hasattr(model, "_optimizer")
    assert from_sklearn(pruned).nnz == network.nnz


def test_a_pipeline_keeps_its_other_steps():
    model = make_pipeline(
        StandardScaler(), MLPRegressor(hidden_layer_sizes=(6,), max_iter=5, random_state=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, TARGETS["regressor"])
    inputs = calibration_inputs(model, X)
    network = from_sklearn(model)
    np.testing.assert_allclose(
        network(inputs)[:, 0], model.predict(X), atol=TOLERANCE["network_double"]
    )
    pruned = to_sklearn(model, network.replace({"layer_0": (0 * network.layers[0].W, None)}))
    constant = pruned.predict(X)
    assert np.ptp(constant) == 0
    assert np.ptp(model.predict(X)) > 0
    assert [name for name, _ in pruned.steps] == [name for name, _ in model.steps]


def test_single_precision_stays():
    model = fitted("three classes", dtype=np.float32)
    network = from_sklearn(model)
    assert network.dtype == np.float32
    assert to_sklearn(model, network).coefs_[0].dtype == np.float32


def searched():
    """A search as it is when it has been fitted."""
    search = GridSearchCV(MLPRegressor(), {"alpha": [1.0]})
    search.best_estimator_ = fitted("regressor")
    return search


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_sklearn(LogisticRegression()), "MLPClassifier.*LogisticRegression"),
        (lambda: from_sklearn(MLPRegressor()), "must be fitted"),
        (lambda: from_sklearn(None), "NoneType"),
        (lambda: from_sklearn(searched()), "was GridSearchCV; give its best_estimator_"),
        (
            lambda: to_sklearn(fitted("regressor"), from_sklearn(fitted("labels"))),
            r"shapes .*\(7, 1\).*\(7, 3\)",
        ),
        (
            lambda: to_sklearn(fitted("regressor"), from_sklearn(fitted("regressor", "tanh"))),
            "outputs differ",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ProblemError, match=message):
        make()


# What stands around a perceptron ------------------------------------------------------------------


def quiet_fit(model, samples, targets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(samples, targets)


def small(**settings):
    return MLPRegressor(hidden_layer_sizes=(6,), max_iter=5, random_state=0, **settings)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_pipelines_inside_pipelines_are_read_and_written(depth):
    model = make_pipeline(small())
    for _ in range(depth):
        model = make_pipeline(StandardScaler(), model)
    model = quiet_fit(model, X, TARGETS["regressor"])
    network, inputs = from_sklearn(model), calibration_inputs(model, X)
    np.testing.assert_allclose(
        network(inputs)[:, 0], model.predict(X), atol=TOLERANCE["network_double"]
    )
    result = prune(network, inputs, steps="alps", sparsity=0.5)
    pruned = to_sklearn(model, result.network)
    np.testing.assert_allclose(
        result.network(inputs)[:, 0], pruned.predict(X), atol=TOLERANCE["network_double"]
    )
    assert from_sklearn(model).nnz == network.nnz > from_sklearn(pruned).nnz


@pytest.mark.parametrize(
    ("around", "inside"),
    [
        (
            lambda: TransformedTargetRegressor(small(), func=np.cbrt, inverse_func=cube),
            "regressor_",
        ),
        (
            lambda: make_pipeline(StandardScaler(), TransformedTargetRegressor(small())),
            "regressor_",
        ),
        (lambda: GridSearchCV(small(), {"alpha": [1.0]}, cv=2), "best_estimator_"),
        (lambda: BaggingRegressor(small(), n_estimators=2), "estimators_"),
    ],
)
def test_estimators_that_hold_a_perceptron_say_where(around, inside):
    model = quiet_fit(around(), X, TARGETS["regressor"])
    with pytest.raises(ProblemError, match=f"give its {inside}, and put what to_sklearn returns"):
        from_sklearn(model)
    held = getattr(model[-1] if hasattr(model, "steps") else model, inside)
    assert from_sklearn(held[0] if isinstance(held, list) else held).layers


def cube(values):
    return values**3


def test_a_regressor_of_transformed_targets_is_written_where_it_was():
    model = TransformedTargetRegressor(small(), func=np.cbrt, inverse_func=cube)
    model = quiet_fit(model, X, TARGETS["regressor"])
    result = prune(from_sklearn(model.regressor_), X, steps="alps", sparsity=0.5)
    pruned = copy.copy(model)
    pruned.regressor_ = to_sklearn(model.regressor_, result.network)
    np.testing.assert_allclose(
        pruned.predict(X), cube(result.network(X)[:, 0]), rtol=TOLERANCE["network_double"]
    )


def test_a_poisson_regressor_is_pruned_by_its_logarithm():
    model = quiet_fit(small(loss="poisson"), X, X[:, 0] ** 2)
    with pytest.raises(ProblemError, match='whose out_activation_ is "identity"'):
        from_sklearn(model)
    logarithm = copy.copy(model)
    logarithm.out_activation_ = "identity"
    result = prune(from_sklearn(logarithm), X, steps="alps", sparsity=0.5)
    pruned = to_sklearn(logarithm, result.network)
    pruned.out_activation_ = "exp"
    np.testing.assert_allclose(
        pruned.predict(X), np.exp(result.network(X)[:, 0]), rtol=TOLERANCE["network_double"]
    )


def test_steps_that_refuse_samples_raise_our_own_error():
    model = quiet_fit(make_pipeline(StandardScaler(), small()), X, TARGETS["regressor"])
    with pytest.raises(ProblemError, match="steps of the pipeline .*ValueError: X has 4 features"):
        calibration_inputs(model, X[:, :4])


def test_an_estimator_with_named_columns_is_written_without_a_warning():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=list("abcde"))
    model = quiet_fit(small(), table, TARGETS["regressor"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned = to_sklearn(model, from_sklearn(model))
        np.testing.assert_array_equal(pruned.predict(table), model.predict(table))
    assert [*pruned.feature_names_in_] == [*"abcde"]


@pytest.mark.parametrize("sparse", [False, True])
def test_no_trained_weights_stay_behind_in_a_pruned_estimator(sparse):
    model = MLPRegressor(
        hidden_layer_sizes=(200, 50), max_iter=5, random_state=0, early_stopping=True
    )
    model = quiet_fit(model, X, TARGETS["regressor"])
    zeros = {f"layer_{i}": (np.where(W > 0.1, W, 0), None) for i, W in enumerate(model.coefs_)}
    pruned = to_sklearn(model, from_sklearn(model).replace(zeros), sparse=sparse)
    trained, held = (
        {id(W) for one in vars(owner).values() if isinstance(one, list) for W in one if np.ndim(W)}
        for owner in (model, pruned)
    )
    assert trained and not trained & held
    kept = 12 * from_sklearn(pruned).nnz if sparse else 8 * sum(W.size for W in model.coefs_)
    assert len(pickle.dumps(pruned)) < 1.05 * kept + 12000 < 0.6 * len(pickle.dumps(model))
    if not sparse:
        quiet_fit(pruned.set_params(warm_start=True), X, TARGETS["regressor"])


def test_zeros_are_kept_in_further_training():
    model = fitted("three classes")
    network = prune(from_sklearn(model), X, steps="alps", sparsity=0.7).network
    stored = to_sklearn(model, network, sparse=True)
    pruned = to_sklearn(stored, from_sklearn(stored))  # dense again
    before = [W.copy() for W in pruned.coefs_]
    zeros = [W == 0 for W in pruned.coefs_]
    for _ in range(3):
        pruned.partial_fit(X, TARGETS["three classes"])
        for W, zero in zip(pruned.coefs_, zeros, strict=True):
            W[zero] = 0
    assert from_sklearn(pruned).nnz <= network.nnz
    assert all(np.any(W != old) for W, old in zip(pruned.coefs_, before, strict=True))

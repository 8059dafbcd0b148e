"""scikit-learn: networks of fitted perceptrons, and pruned perceptrons back."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
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

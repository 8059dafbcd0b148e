"""scikit-learn: ``MLPClassifier`` and ``MLPRegressor``, also at the end of a pipeline.

Three calls prune one::

    network = from_sklearn(model)
    result = prune_network(network, calibration_inputs(model, X), tolerance=0.1)
    pruned = to_sklearn(model, result.network)

Nothing of scikit-learn is imported: the fitted attributes say all that is needed.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ..checks import as_array, check_flag, refuse_masked
from ..exceptions import ProblemError
from ..network import Activate, Dense, Network, Operation, Softmax
from ..network.graph import check_network

#: scikit-learn's names of activations, and ours; softmax is an operation of its own.
ACTIVATION_NAMES = {"relu": "relu", "tanh": "tanh", "logistic": "sigmoid", "identity": None}

#: Inputs on which the pruned estimator is compared with its network, and their largest difference
#: relative to the largest output: a few roundings in the dtype of the weights.
PROBES, AGREEMENT = 32, {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-4}


#: Where estimators that hold others keep a fitted one.
INSIDE = ("best_estimator_", "regressor_", "estimators_", "estimator_")

_LOGARITHM = (
    ' (loss="poisson"): read a copy.copy(estimator) whose out_activation_ is "identity", which '
    'predicts the logarithm, and set it to "exp" again in what to_sklearn returns'
)


def from_sklearn(estimator: Any) -> Network:
    """Return the network of a fitted multilayer perceptron.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor, or a Pipeline that ends in one
        Fitted. Of a pipeline this is the last step (in a pipeline inside it, of that one);
        :func:`calibration_inputs` applies the others.

    Returns
    -------
    Network
        Layers ``"layer_0"``, ``"layer_1"``, ... Its output is what ``predict_proba`` (classifiers;
        one column when there are two classes) or ``predict`` (regressors) computes.

    Raises
    ------
    ProblemError
        If the estimator is no multilayer perceptron, or not fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neural_network import MLPRegressor
    >>> X = np.random.default_rng(0).standard_normal((50, 4))
    >>> model = MLPRegressor(hidden_layer_sizes=(8,), tol=0.01, solver="lbfgs", random_state=0)
    >>> model = model.fit(X, X[:, 0])
    >>> network = from_sklearn(model)
    >>> bool(np.allclose(network(X)[:, 0], model.predict(X)))
    True
    """
    mlp = _perceptron(estimator)
    operations: list[Operation] = []
    last = len(mlp.coefs_) - 1
    for number, (W, b) in enumerate(zip(mlp.coefs_, mlp.intercepts_, strict=True)):
        dense = W.toarray() if sp.issparse(W) else W
        operations.append(Dense(dense, b, name=f"layer_{number}"))
        kind = mlp.out_activation_ if number == last else mlp.activation
        if isinstance(kind, str) and kind == "softmax":
            operations.append(Softmax())
            continue
        if not isinstance(kind, str) or kind not in ACTIVATION_NAMES:
            raise ProblemError(
                f"estimator must have an activation among {[*ACTIVATION_NAMES, 'softmax']}, "
                f"but layer {number} has {kind!r}{_LOGARITHM if str(kind) == 'exp' else ''}"
            )
        name = ACTIVATION_NAMES[kind]
        if name is not None:
            operations.append(Activate(name))
    return Network(operations)


def calibration_inputs(estimator: Any, X: Any) -> NDArray[Any]:
    """Return what the perceptron sees of samples: the output of a pipeline's earlier steps.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor, or a Pipeline that ends in one
    X : array_like of shape (n_samples, n_features)
        Samples as the estimator takes them.

    Returns
    -------
    ndarray of shape (n_samples, n_inputs)

    Raises
    ------
    ProblemError
        If a step does not take the samples, if they have other columns than those of the fit (or
        the same in another order), masked entries, or columns that hold no numbers.
    """
    mlp = _perceptron(estimator)
    refuse_masked("X", X)
    while hasattr(estimator, "steps"):
        if len(estimator.steps) > 1:
            X = _transformed(estimator[:-1], X)
        estimator = estimator.steps[-1][1]
    _check_columns(mlp, X)
    return as_array("X", X.toarray() if sp.issparse(X) else X)


def to_sklearn(estimator: Any, network: Network, *, sparse: bool = False) -> Any:
    """Return a fitted copy of the estimator with the weights of a pruned network.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor, or a Pipeline that ends in one
        The one that the network was read from; it is not changed.
    network : Network
        With layers of the same shapes.
    sparse : bool
        Store the weights as ``scipy.sparse.csr_array``: smaller, and faster for many zeros. Such an
        estimator predicts, but cannot be fitted further; its weights are made dense again by
        ``to_sklearn(pruned, from_sklearn(pruned))``.

    Returns
    -------
    estimator
        Without the optimiser's moments, which no prediction needs.

    Raises
    ------
    ProblemError
        If the shapes differ, or the copy does not predict what the network computes.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neural_network import MLPRegressor
    >>> from nettrim_solver import prune_network
    >>> X = np.random.default_rng(0).standard_normal((200, 6))
    >>> model = MLPRegressor(hidden_layer_sizes=(16,), tol=0.01, solver="lbfgs", random_state=0)
    >>> model = model.fit(X, X[:, 0])
    >>> result = prune_network(from_sklearn(model), X, tolerance=0.05)
    >>> pruned = to_sklearn(model, result.network)
    >>> bool(sum(np.count_nonzero(W) for W in pruned.coefs_) == result.network.nnz)
    True
    """
    old = _perceptron(estimator)
    check_network(network)
    check_flag("sparse", sparse)
    shapes = [getattr(W, "shape", None) for W in old.coefs_]
    found = [layer.W.shape for layer in network.layers]
    if shapes != found:
        raise ProblemError(f"network must have layers of shapes {shapes}, but has {found}")
    mlp = copy.copy(old)
    weights = [np.array(layer.W) for layer in network.layers]
    mlp.coefs_ = [sp.csr_array(W) for W in weights] if sparse else weights
    mlp.intercepts_ = [
        np.zeros(layer.n_outputs, layer.W.dtype) if layer.b is None else np.array(layer.b)
        for layer in network.layers
    ]
    mlp.__dict__.pop("_optimizer", None)
    if hasattr(mlp, "_best_coefs"):
        # What early stopping goes back to: the trained weights, as large as those that were pruned.
        mlp._best_coefs, mlp._best_intercepts = mlp.coefs_, mlp.intercepts_
    _check_predictions(mlp, network)
    return _with_perceptron(estimator, mlp)


def _with_perceptron(estimator: Any, mlp: Any) -> Any:
    """Return a copy of an estimator that ends in this perceptron."""
    if not hasattr(estimator, "steps"):
        return mlp
    result = copy.copy(estimator)
    name, last = estimator.steps[-1]
    result.steps = [*estimator.steps[:-1], (name, _with_perceptron(last, mlp))]
    return result


def _perceptron(estimator: Any) -> Any:
    """Return the fitted perceptron: the estimator itself, or the last step of pipelines."""
    mlp = estimator
    while hasattr(mlp, "steps"):
        mlp = mlp.steps[-1][1]
    if not (hasattr(mlp, "hidden_layer_sizes") and hasattr(mlp, "activation")):
        inside = next((name for name in INSIDE if hasattr(mlp, name)), "")
        remedy = f"; give its {inside}, and put what to_sklearn returns back there"
        raise ProblemError(
            "estimator must be an MLPClassifier, an MLPRegressor, or a Pipeline that ends in one, "
            f"but was {type(mlp).__name__}{remedy if inside else ''}"
        )
    if not hasattr(mlp, "coefs_"):
        raise ProblemError(f"estimator must be fitted, but this {type(mlp).__name__} is not")
    weights: list[Any] = [getattr(mlp, name, None) for name in ("coefs_", "intercepts_")]
    if not all(isinstance(one, (list, tuple)) for one in weights) or not (
        0 < len(weights[0]) == len(weights[1])
    ):
        raise ProblemError(
            f"estimator must have lists coefs_ and intercepts_ with an entry per layer, but this "
            f"{type(mlp).__name__} has others"
        )
    return mlp


def _transformed(steps: Any, X: Any) -> Any:
    """Return what the steps of a pipeline make of samples."""
    try:
        return steps.transform(X)
    except Exception as error:
        # The steps are anyone's code.
        raise ProblemError(
            "X must be samples as the steps of the pipeline take them, but they raise "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _check_columns(mlp: Any, X: Any) -> None:
    """Raise if samples have other columns than the perceptron was fitted with."""
    shape: Any = getattr(X, "shape", ())
    columns = getattr(X, "columns", None)
    if isinstance(shape, tuple) and len(shape) == 2 and shape[1] != mlp.n_features_in_:
        raise ProblemError(f"X must have {mlp.n_features_in_} columns, but has {shape[1]}")
    names = getattr(mlp, "feature_names_in_", None)
    if names is None or columns is None or [*names] == [*columns]:
        return
    if {*names} == {*columns}:
        raise ProblemError(
            "X must have its columns in the order of the fit, but has them in another one; "
            "X[list(estimator.feature_names_in_)] has it"
        )
    raise ProblemError(
        f"X must have the columns that the estimator was fitted with, but {[*names]} became "
        f"{[*columns]}; X.to_numpy() is taken by position"
    )


def _check_predictions(mlp: Any, network: Network) -> None:
    """Raise unless the estimator computes what the network does, on random inputs."""
    mlp = copy.copy(mlp)
    # The inputs have no names: scikit-learn would warn of that.
    mlp.__dict__.pop("feature_names_in_", None)
    dtype = np.dtype(mlp.intercepts_[0].dtype)
    X = np.random.default_rng(0).standard_normal((PROBES, network.layers[0].W.shape[0]))
    X = X.astype(dtype)
    expected = network(X)
    try:
        if hasattr(mlp, "predict_proba"):
            outputs = mlp.predict_proba(X)
            outputs = outputs[:, 1:] if expected.shape[1] == 1 else outputs
        else:
            outputs = mlp.predict(X).reshape(expected.shape)
    except Exception as error:
        # Attributes of an estimator may be anything.
        raise ProblemError(
            f"estimator must predict, but raises {type(error).__name__}: {error}"
        ) from error
    difference = float(np.max(np.abs(outputs - expected)))
    if not difference <= AGREEMENT[dtype] * max(1.0, float(np.max(np.abs(expected)))):
        raise ProblemError(
            f"network must compute what the estimator does, but their outputs differ by "
            f"{difference:.3g}; it was read from another estimator"
        )

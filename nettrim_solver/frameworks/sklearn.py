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

from ..exceptions import ProblemError
from ..network import Activate, Dense, Network, Operation, Softmax

#: scikit-learn's names of activations, and ours; softmax is an operation of its own.
ACTIVATION_NAMES = {"relu": "relu", "tanh": "tanh", "logistic": "sigmoid", "identity": None}

#: Inputs on which the pruned estimator is compared with its network, and their largest difference
#: relative to the largest output: a few roundings in the dtype of the weights.
PROBES, AGREEMENT = 32, {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-4}


def from_sklearn(estimator: Any) -> Network:
    """Return the network of a fitted multilayer perceptron.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor, or a Pipeline that ends in one
        Fitted. Of a pipeline this is the last step; :func:`calibration_inputs` applies the others.

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
        dense = W.toarray() if sp.issparse(W) else np.asarray(W)
        operations.append(Dense(dense, np.asarray(b), name=f"layer_{number}"))
        kind = mlp.out_activation_ if number == last else mlp.activation
        if kind == "softmax":
            operations.append(Softmax())
            continue
        if kind not in ACTIVATION_NAMES:
            raise ProblemError(
                f"estimator must have an activation among {[*ACTIVATION_NAMES, 'softmax']}, "
                f"but layer {number} has {kind!r}"
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
    """
    mlp = _perceptron(estimator)
    if mlp is not estimator:
        X = estimator[:-1].transform(X)
    return np.asarray(X.toarray() if sp.issparse(X) else X)


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
        estimator predicts, but cannot be fitted further.

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
    shapes = [tuple(W.shape) for W in old.coefs_]
    found = [layer.W.shape for layer in network.layers]
    if shapes != found:
        raise ProblemError(f"network must have layers of shapes {shapes}, but has {found}")
    result = copy.copy(estimator)
    mlp = copy.copy(old)
    if mlp is not result and hasattr(result, "steps"):
        result.steps = [*estimator.steps[:-1], (estimator.steps[-1][0], mlp)]
    else:
        result = mlp
    weights = [np.array(layer.W) for layer in network.layers]
    mlp.coefs_ = [sp.csr_array(W) for W in weights] if sparse else weights
    mlp.intercepts_ = [
        np.zeros(layer.n_outputs, layer.W.dtype) if layer.b is None else np.array(layer.b)
        for layer in network.layers
    ]
    if hasattr(mlp, "_optimizer"):
        del mlp._optimizer
    _check_predictions(mlp, network)
    return result


def _perceptron(estimator: Any) -> Any:
    """Return the fitted perceptron: the estimator itself, or a pipeline's last step."""
    mlp = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    if not (hasattr(mlp, "hidden_layer_sizes") and hasattr(mlp, "activation")):
        search = "; give its best_estimator_" if hasattr(mlp, "best_estimator_") else ""
        raise ProblemError(
            "estimator must be an MLPClassifier, an MLPRegressor, or a Pipeline that ends in one, "
            f"but was {type(mlp).__name__}{search}"
        )
    if not hasattr(mlp, "coefs_"):
        raise ProblemError(f"estimator must be fitted, but this {type(mlp).__name__} is not")
    return mlp


def _check_predictions(mlp: Any, network: Network) -> None:
    """Raise unless the estimator computes what the network does, on random inputs."""
    dtype = np.dtype(mlp.intercepts_[0].dtype)
    X = np.random.default_rng(0).standard_normal((PROBES, network.layers[0].W.shape[0]))
    X = X.astype(dtype)
    expected = network(X)
    if hasattr(mlp, "predict_proba"):
        outputs = mlp.predict_proba(X)
        outputs = outputs[:, 1:] if expected.shape[1] == 1 else outputs
    else:
        outputs = mlp.predict(X).reshape(expected.shape)
    difference = float(np.max(np.abs(outputs - expected)))
    if not difference <= AGREEMENT[dtype] * max(1.0, float(np.max(np.abs(expected)))):
        raise ProblemError(
            f"network must compute what the estimator does, but their outputs differ by "
            f"{difference:.3g}; it was read from another estimator"
        )

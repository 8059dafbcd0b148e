"""Layers for the iterative pruners: with a sparse truth behind them, and without any."""

import numpy as np

from nettrim_solver import Problem


def planted_layer(seed, *, noise, n_inputs=24, n_outputs=6):
    """A target made by sparse weights, and trained weights that lie `noise` away from them.

    The inputs are nearly independent, and the weights of the truth lie between 1 and 2. It behaves
    like a layer behind pruned ones: the trained weights do not fit the target.

    Returns
    -------
    problem : Problem
    truth : ndarray of shape (n_inputs, n_outputs)
    """
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((12 * n_inputs, n_inputs))
    size = (n_inputs, n_outputs)
    truth = rng.choice([-1.0, 1.0], size) * rng.uniform(1.0, 2.0, size) * (rng.random(size) < 0.3)
    W = truth + noise * rng.standard_normal(size)
    return Problem(X, X @ truth, W, activation="identity", intercept=False), truth


def dense_layer(seed, *, n_inputs=48, n_outputs=40, correlation=0.9):
    """A layer that reproduces its trained weights, without any sparse truth."""
    rng = np.random.default_rng(seed)
    index = np.arange(n_inputs)
    mix = np.linalg.cholesky(correlation ** np.abs(np.subtract.outer(index, index)))
    X = rng.standard_normal((4 * n_inputs, n_inputs)) @ mix.T
    W = rng.standard_normal((n_inputs, n_outputs))
    return Problem(X, X @ W, W, activation="identity", intercept=False)


def relative_error(problem, W):
    return np.linalg.norm(problem.X @ W - problem.Y) / np.linalg.norm(problem.Y)

"""Small layers, and least squares on the samples themselves, to hold the brain surgeons against."""

import numpy as np

from nettrim_solver import Problem
from nettrim_solver.solvers.gram import gram


def small_layer(seed, n_inputs, n_outputs, *, shift=0.0):
    """A linear layer of correlated inputs whose target is `shift` away from X W."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((4 * n_inputs + 5, n_inputs)) @ rng.standard_normal((n_inputs,) * 2)
    X += rng.standard_normal(X.shape)
    W = rng.standard_normal((n_inputs, n_outputs))
    target = X @ W + shift * rng.standard_normal((len(X), n_outputs))
    return Problem(X, target, W, activation="identity", intercept=False)


def data_of(problem, damping):
    return gram(problem, solve_intercept=False).damped(damping)


def rows_of(problem, damping):
    """Samples and targets with the pull towards W as rows of its own."""
    N = problem.n_inputs
    pull = np.sqrt(damping * np.mean(np.sum(problem.X**2, axis=0)))
    X = np.vstack([problem.X, pull * np.eye(N)])
    return X, np.vstack([problem.Y, pull * problem.W])


def least_squares(X, t, support):
    """Loss and weights of the least-squares fit on a support, by lstsq on the samples."""
    w = np.zeros(X.shape[1])
    w[support] = np.linalg.lstsq(X[:, support], t, rcond=None)[0]
    return float(np.sum((t - X @ w) ** 2)), w

"""Compile the solvers' kernels before the clock of a run starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..exceptions import NettrimError
from ..pipeline import Pipeline
from ..problem import Problem
from .recipe import Steps
from .target import Budget

#: Shape (samples, inputs, outputs) of the layer that kernels are compiled on, and its nonzeros.
SHAPE, NNZ = (24, 6, 3), 9

#: What has been compiled in this process.
_done: set[tuple[str, str, bool]] = set()


def warm_up(
    steps: Iterable[Steps], budget: Budget, dtype: DTypeLike, report: Callable[[], Any]
) -> None:
    """Run steps on a tiny layer, once per process and dtype.

    Parameters
    ----------
    steps : iterable of Pipeline or callable
        Functions of a user's own are left alone.
    budget : Budget
    dtype : dtype
        Of the layers.
    report : callable
        Called before something is compiled, or loaded from numba's cache.
    """
    for pipeline in steps:
        by_radius = budget.name == "tolerance"
        key = repr(pipeline), np.dtype(dtype).str, by_radius
        if not isinstance(pipeline, Pipeline) or key in _done:
            continue
        report()
        rng = np.random.default_rng(0)
        P, N, M = SHAPE
        X, W = rng.random((P, N)).astype(dtype), rng.standard_normal((N, M)).astype(dtype)
        tolerance = 0.3 if by_radius else None
        problem = Problem(X, np.maximum(X @ W, 0), W, tolerance=tolerance)
        try:
            pipeline(problem, None if by_radius else NNZ)
        except NettrimError:
            pass  # The layers will say what is wrong.
        _done.add(key)

"""Settings and data that all tests share."""

import os

# Before numpy is imported: a BLAS pool larger than the free cores slows small products a
# hundredfold. Tests of the thread count set their own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

# The same examples in every run, and no files left behind.
settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, max_examples=60
)
settings.load_profile("repeatable")


class Layer(NamedTuple):
    """A small trained ReLU layer with correlated inputs: Y = max(X W + b, 0)."""

    X: NDArray[np.float64]
    W: NDArray[np.float64]
    b: NDArray[np.float64]
    Y: NDArray[np.float64]


@pytest.fixture
def layer() -> Layer:
    rng = np.random.default_rng(20)
    X = np.maximum(rng.standard_normal((30, 3)) @ rng.standard_normal((3, 8)), 0.0)
    X += 0.1 * rng.standard_normal((30, 8))
    W, b = rng.standard_normal((8, 4)), rng.standard_normal(4)
    return Layer(X, W, b, np.maximum(X @ W + b, 0.0))

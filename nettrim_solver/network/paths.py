r"""How much error the zeros of one layer cost, as a curve.

A layer is pruned alone, all others as trained, for a grid of sparsities (:mod:`.probing`). Each
point has two errors: the layer's own, and the one that it causes at the network's output,

.. math:: e_l(k) = \frac{\|f_{l, k}(X) - f(X)\|_F^2}{\|f(X)\|_F^2},

for k nonzero weights in layer l. :mod:`.allocation` spreads a budget of weights by these curves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .result import plain

#: Numbers of nonzeros per curve at which its interpolation is looked at.
FINE = 400

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerPath:
    """What the zeros of one layer cost.

    Attributes
    ----------
    name : str
    size : int
        Weights of the layer.
    nnz : ndarray of int64, shape (n_points,)
        Nonzero weights, ascending.
    errors : ndarray of float64, shape (n_points,)
        Of the layer's own output after the activation, a Frobenius norm relative to that of the
        trained layer's; on the calibration samples.
    output_errors : ndarray of float64, shape (n_points,)
        Of the network's output: squared norms, relative.
    errors_heldout, output_errors_heldout : ndarray or None
        The same on other samples.
    solver : str
    seconds : float
    """

    name: str
    size: int
    nnz: Counts
    errors: Values
    output_errors: Values
    errors_heldout: Values | None = None
    output_errors_heldout: Values | None = None
    solver: str = ""
    seconds: float = 0.0

    @property
    def sparsities(self) -> Values:
        """Fractions of zeros, descending."""
        return 1.0 - self.nnz / self.size

    def error_at(self, nnz: ArrayLike) -> Any:
        """Return the layer's own error on the calibration samples, for numbers of nonzeros.

        Interpolated like :meth:`output_error_at`.
        """
        return _interpolate(self.nnz, self.errors, nnz)

    def nnz_for(self, error: float) -> int:
        """Return the fewest nonzeros whose own error, on the calibration samples, is no larger.

        `size` if there are none. Where the measured errors do not fall, those to the left count.
        """
        falling = np.minimum.accumulate(self.errors)
        low, high = -1, self.size
        while high - low > 1:
            middle = (low + high) // 2
            if _interpolate(self.nnz, falling, middle) <= error:
                high = middle
            else:
                low = middle
        return high

    def times(self, weight: float) -> LayerPath:
        """Return the path with the output's errors multiplied by a number."""
        held = self.output_errors_heldout
        return replace(
            self, output_errors=weight * self.output_errors,
            output_errors_heldout=None if held is None else weight * held,
        )  # fmt: skip

    def output_error_at(self, nnz: ArrayLike) -> Any:
        """Return the squared relative error at the network's output, on held-out samples if any.

        Interpolated linearly between the logarithms of both; linearly next to 0. Constant beyond
        the ends.

        Examples
        --------
        >>> import numpy as np
        >>> path = LayerPath("fc", 100, np.array([1, 100]), np.ones(2), np.array([1.0, 0.01]))
        >>> round(path.output_error_at(10), 12)
        0.1
        """
        held = self.output_errors_heldout
        return _interpolate(self.nnz, self.output_errors if held is None else held, nnz)

    def minorant(self, low: int = 0, high: int | None = None) -> tuple[Counts, Values]:
        """Return the largest convex curve below :meth:`output_error_at`, by its corners.

        Parameters
        ----------
        low, high : int
            The numbers of nonzeros between which it is wanted; `high` is `size` when omitted.

        Returns
        -------
        nnz : ndarray of int64
            Ascending, from `low` to `high`.
        output_errors : ndarray of float64
        """
        high = self.size if high is None else high
        inner = np.geomspace(max(low, 1), max(high, 1), FINE).round().astype(np.int64)
        points = np.concatenate([inner, self.nnz, [low, high]])
        points = np.unique(points[(points >= low) & (points <= high)])
        corners = _lower_hull(points.astype(np.float64), self.output_error_at(points))
        return points[corners], self.output_error_at(points[corners])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw both errors against the zeros.

        Parameters
        ----------
        path : path-like, optional
            Where to write the figure; the suffix decides on the format (".png", ".pdf", ".svg").

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingDependencyError
            Without matplotlib.
        OSError
            If there is no such folder.
        """
        from .plots import plot_paths  # draws paths, so it stands above them

        return plot_paths([self], path)

    def to_dict(self) -> dict[str, Any]:
        """Return the path as JSON values."""
        arrays = {name: getattr(self, name) for name in ("nnz", "sparsities", *ERRORS)}
        lists = {k: None if v is None else plain(v.tolist()) for k, v in arrays.items()}
        own = {"name": self.name, "size": self.size, "solver": self.solver}
        return own | lists | {"seconds": self.seconds}


ERRORS = ("errors", "output_errors", "errors_heldout", "output_errors_heldout")


def _interpolate(nnz: Counts, values: Values, at: ArrayLike) -> Any:
    """Interpolate in log-log; linearly in segments with an end at zero; constant outside."""
    x, wanted = nnz.astype(np.float64), np.asarray(at, dtype=np.float64)
    found = np.asarray(np.interp(wanted, x, values))
    if len(x) > 1:
        left = np.clip(np.searchsorted(x, wanted, side="right") - 1, 0, len(x) - 2)
        positive = (x > 0) & (values > 0)
        both = positive[left] & positive[left + 1] & (wanted >= x[0]) & (wanted <= x[-1])
        tiny = np.finfo(np.float64).tiny
        log_x, log_values = np.log(np.maximum(x, tiny)), np.log(np.maximum(values, tiny))
        logs = np.interp(np.log(np.maximum(wanted, tiny)), log_x, log_values)
        found = np.where(both, np.exp(logs), found)
    return float(found) if found.ndim == 0 else found


def _lower_hull(x: Values, y: Values) -> list[int]:
    """Return the corners of the convex minorant of points with ascending x."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (y[b] - y[a]) * (x[i] - x[b]) < (y[i] - y[b]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(i)
    return corners

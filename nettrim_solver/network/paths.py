r"""How much error the zeros of one layer cost: measured layer by layer, as a curve.

A layer is pruned alone, all others as trained, for a grid of sparsities. Each point has two errors:
the layer's own, and the one that it causes at the network's output,

.. math:: e_l(k) = \frac{\|f_{l, k}(X) - f(X)\|_F^2}{\|f(X)\|_F^2},

for k nonzero weights in layer l. :mod:`.allocation` spreads a budget of weights by these curves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..budget import solve_for_nnz
from ..checks import check_integer, check_number
from ..exceptions import ProblemError, SettingsError, SolverError
from ..plotting import new_figure, save_figure
from ..solution import Solution
from ..solvers import SOLVERS
from ..threads import limit_threads
from .calibration import Folder, collect
from .choices import LayerSettings, resolve
from .graph import Network
from .measure import Errors, measure, relative
from .modes import MAX_ROWS, as_calibration
from .result import plain
from .tasks import failure, group_tasks

if TYPE_CHECKING:
    from ..solvers.admm.factorisation import Factorisation

#: Sparsities at which a layer is pruned. No weights at all and all of them cost nothing to measure.
GRID = (0.4, 0.7, 0.85, 0.93, 0.97, 0.99)

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
        return plot_paths([self], path)

    def to_dict(self) -> dict[str, Any]:
        """Return the path as JSON values."""
        arrays = {name: getattr(self, name) for name in ("nnz", "sparsities", *ERRORS)}
        lists = {k: None if v is None else plain(v.tolist()) for k, v in arrays.items()}
        own = {"name": self.name, "size": self.size, "solver": self.solver}
        return own | lists | {"seconds": self.seconds}


ERRORS = ("errors", "output_errors", "errors_heldout", "output_errors_heldout")


def layer_path(
    network: Network,
    name: str,
    X: Any,
    sparsities: Iterable[float] = GRID,
    *,
    solver: str = "alps",
    settings: Mapping[str, Any] | None = None,
    X_heldout: Any = None,
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
    n_threads: int | None = None,
) -> LayerPath:
    """Measure what the zeros of one layer cost, with all other layers as trained.

    Parameters
    ----------
    network : Network
    name : str
        The layer.
    X : array_like, iterable or Calibration
        Calibration data.
    sparsities : iterable of float
        In [0, 1). No weights at all, and all of them, are always among the points.
    solver : str
        One of :func:`available_solvers`.
    settings : mapping, optional
        The solver's own settings.
    X_heldout : array_like, iterable or Calibration, optional
        Other samples, to measure the errors on as well.
    max_rows : int or None
        Rows of the layer that are used at most.
    seed : int
        Decides which.
    n_threads : int, optional
        As in :func:`solve`.

    Returns
    -------
    LayerPath

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.
    SolverError
        If the solver fails at a point.

    Notes
    -----
    One collection of the layer's rows for all points. Convex solvers share one factorisation, and
    each point starts from the one before; "exact_obs" traces the removals once.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Activate, Dense, Network
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((20, 12)), np.zeros(12), name="hidden"), Activate("relu"),
    ...     Dense(rng.standard_normal((12, 3)), np.zeros(3), name="scores"),
    ... ])
    >>> path = layer_path(network, "hidden", rng.standard_normal((300, 20)), [0.5, 0.9])
    >>> path.nnz
    array([  0,  24, 120, 240])
    >>> bool(np.all(np.diff(path.output_errors) < 0)), float(path.output_errors[-1])
    (True, 0.0)
    """
    prober = Prober(
        network, X, X_heldout, solver=solver, settings=settings, max_rows=max_rows, seed=seed
    )
    with limit_threads(n_threads):
        return prober.path(name, sparsities, n_threads)


class Prober:
    """Prunes single layers of a network for numbers of nonzeros, and measures what that does.

    Parameters
    ----------
    network : Network
    X, X_heldout : array_like, iterable or Calibration, optional
        Without X nothing can be pruned.
    skip : str or iterable of str, optional
        Layers that stay as they are.
    overrides : mapping, optional
        As in :func:`prune_network`, without budgets.
    spill : path, optional
    seed : int
    **base
        Fields of :class:`.LayerSettings`.

    Attributes
    ----------
    original : Network
        The network, batch normalisations folded.
    data, heldout : Calibration or None
    choices : dict of str to LayerSettings
        Of every layer.
    names : list of str
        The layers that are to be pruned.
    """

    def __init__(
        self,
        network: Network,
        X: Any = None,
        X_heldout: Any = None,
        *,
        skip: str | Iterable[str] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        spill: Folder | None = None,
        seed: int = 0,
        **base: Any,
    ) -> None:
        if not isinstance(network, Network):
            raise ProblemError(f"network must be a Network, but was a {type(network).__name__}")
        check_integer("seed", seed, 0)
        self.original = network.folded()
        budgets = {"tolerance": None, "sparsity": None, "nnz": 0}
        self.choices = resolve(self.original, LayerSettings(**base), budgets, overrides, skip)
        self.names = [name for name, choice in self.choices.items() if not choice.skip]
        if not self.names:
            raise SettingsError(
                f"at least one layer must be pruned, but of {[*self.choices]} none is left"
            )
        self.data, self.heldout = (
            None if given is None else as_calibration(given, self.original, spill, name)
            for name, given in (("X", X), ("X_heldout", X_heldout))
        )
        self.seed, self.spill = seed, spill

    def path(
        self, name: str, sparsities: Iterable[float] = GRID, n_threads: int | None = None
    ) -> LayerPath:
        """Return the path of one layer alone; see :func:`layer_path`."""
        tick = time.perf_counter()
        layer = self.original.layer(name)
        grid = _counts(sparsities, layer.W.size)
        found = dict(self.pruned(self.original, name, grid, n_threads))
        found[layer.W.size] = self.original
        path = self.measured(name, found)
        return replace(path, seconds=time.perf_counter() - tick)

    def pruned(
        self, source: Network, name: str, counts: Iterable[int], n_threads: int | None = None
    ) -> Iterator[tuple[int, Network]]:
        """Prune one layer for several numbers of nonzeros, ascending.

        Parameters
        ----------
        source : Network
            The network whose signals enter the layer, and that gets the new weights.
        name : str
        counts : iterable of int
        n_threads : int, optional

        Yields
        ------
        nnz : int
        network : Network
            `source` with this layer pruned.

        Raises
        ------
        SolverError
            If the solver fails.
        """
        original, choice, layer = self.original, self.choices[name], self.original.layer(name)
        assert self.data is not None
        signals = collect(
            source, name, self.data, original=None if source is original else original,
            max_rows=choice.max_rows, seed=self.seed, spill=self.spill,
        )  # fmt: skip
        activation = original.activation_after(name)
        solvers = [_GroupSolver(choice, n_threads) for _ in range(layer.n_groups)]
        for count in sorted(set(counts)):
            if count == 0:
                b = None if layer.b is None else signals.Z.mean(axis=0)
                yield count, source.replace({name: (np.zeros_like(layer.W), b)})
                continue
            tasks = group_tasks(signals, activation, choice.with_budget("nnz", count), False)
            answers = []
            for task, solver in zip(tasks, solvers, strict=True):
                solution = solver(task.problem, task.nnz)
                reason = failure(solution, task.problem)
                if reason is not None:
                    raise SolverError(f"layer {name!r} at {count} nonzeros: {reason}", solution)
                answers.append(solution)
            b = None
            if layer.b is not None:
                b = np.concatenate([np.asarray(answer.b) for answer in answers])
            W = layer.from_matrices([answer.W for answer in answers])
            yield count, source.replace({name: (W, b)})

    def output_error(self, network: Network) -> float:
        """Return the squared relative error at the output, on held-out samples if there are any."""
        data = self.data if self.heldout is None else self.heldout
        assert data is not None
        return _output_error(measure(self.original, network, data, alone=False))

    def measured(self, name: str, networks: Mapping[int, Network]) -> LayerPath:
        """Return the errors of networks as a path of one layer, by its number of nonzeros."""
        nnz = np.array(sorted(networks), dtype=np.int64)
        fields: dict[str, Any] = {}
        for suffix, data in (("", self.data), ("_heldout", self.heldout)):
            if data is None:
                continue
            found = [measure(self.original, networks[int(k)], data, alone=False) for k in nnz]
            fields[f"errors{suffix}"] = np.array([e.relative(e.network, name) for e in found])
            fields[f"output_errors{suffix}"] = np.array([_output_error(e) for e in found])
        return LayerPath(
            name, self.original.layer(name).W.size, nnz, solver=str(self.choices[name].solver),
            **fields,
        )  # fmt: skip


class _GroupSolver:
    """Solves the problem of one group for one budget after the other; carries what can be used."""

    def __init__(self, choice: LayerSettings, n_threads: int | None) -> None:
        self.solver, self.settings = str(choice.solver), dict(choice.settings or {})
        self.n_threads = n_threads
        self.last: Solution | None = None
        self.factorisation: Factorisation | None = None

    def __call__(self, problem: Any, nnz: int | None) -> Solution:
        assert nnz is not None
        # Other pruners ignore a start, or (l0) would give answers that depend on the grid.
        starts = SOLVERS[self.solver].convex or self.solver == "exact_obs"
        if self.solver == "admm" and self.factorisation is None:
            from ..solvers.admm.factorisation import Factorisation

            self.factorisation = Factorisation(problem)
        self.last = solve_for_nnz(
            problem, nnz, self.solver, warm_start=self.last if starts else None,
            factorisation=self.factorisation, n_threads=self.n_threads, **self.settings,
        )  # fmt: skip
        return self.last


def plot_paths(paths: Sequence[LayerPath], path: str | os.PathLike[str] | None = None) -> Any:
    """Draw the paths of several layers: own errors on the left, the output's on the right.

    Solid lines are held-out samples where these were measured, dashed ones calibration samples.

    Parameters
    ----------
    paths : sequence of LayerPath
    path : path-like, optional
        As in :meth:`LayerPath.plot`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_figure(9.0, 4.0)
    axes = figure.subplots(1, 2)
    for color, one in enumerate(paths):
        for panel, name in zip(axes, ("errors", "output_errors"), strict=True):
            held = getattr(one, f"{name}_heldout")
            lines = [(held, "-"), (getattr(one, name), "-" if held is None else "--")]
            for values, style in lines:
                if values is not None:
                    some = values > 0
                    panel.plot(
                        100 * one.sparsities[some], values[some], style, marker=".",
                        color=f"C{color % 10}", label=one.name if style == "-" else None,
                    )  # fmt: skip
    for panel, label in zip(
        axes, ("relative error of the layer", "squared relative error of the network"), strict=True
    ):
        panel.set(xlabel="zeros of the layer (%)", ylabel=label, yscale="log")
        panel.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize="small")
    save_figure(figure, path)
    return figure


def _counts(sparsities: Iterable[float], size: int) -> list[int]:
    """Return numbers of nonzeros for sparsities, and 0."""
    try:
        given = list(sparsities)
    except TypeError:
        raise SettingsError(f"sparsities must be numbers, but was {sparsities!r}") from None
    for value in given:
        check_number("sparsities", value, 0.0, 1.0, closed=True)
    return [0, *(size - round(float(value) * size) for value in given)]


def _output_error(errors: Errors) -> float:
    """Return the squared relative error of the network's output."""
    error = relative(errors.output, errors.output_target)
    if not np.isfinite(error):
        raise ProblemError(
            "the network's output must be finite and not all zero on the samples, but its squared "
            f"norm is {errors.output_target:g}"
        )
    return error


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

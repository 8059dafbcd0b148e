"""What every solver returns: weights, and what the judge says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .certificate import Certificate
from .exceptions import ProblemError
from .status import Status


@dataclass(frozen=True, eq=False)
class RemovalTrace:
    r"""The order in which a layer loses its weights, and what every removal costs.

    After :math:`c_j` removals from output j its loss, the squared error of the linear outputs with
    all that stays refitted, is ``base[j] + increments[:c_j, j].sum()``. Damping is part of it. So
    one trace answers every budget: the removals are made in the order of their increments over the
    whole layer, each standing for the next one of its output. (Increments may fall along an
    output, so they are counted; the last one is no threshold.)

    The arrays are read-only copies.

    Attributes
    ----------
    order : ndarray of int32, shape (n_steps, n_outputs)
        Input removed from each output at each step.
    increments : ndarray of float64, shape (n_steps, n_outputs)
        What that adds to the loss.
    base : ndarray of float64, shape (n_outputs,)
        Loss before the first removal.
    n_inputs : int
    pattern : (int, int) or None
        (n, m) when the removals end with n weights in every m consecutive inputs.
    fingerprint : ndarray of float64
        Numbers that tell whether a trace belongs to given data.
    """

    order: NDArray[np.int32]
    increments: NDArray[np.float64]
    base: NDArray[np.float64]
    n_inputs: int
    pattern: tuple[int, int] | None
    fingerprint: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("order", "increments", "base", "fingerprint"):
            values = np.array(getattr(self, name), order="C")
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    @cached_property
    def _outputs(self) -> NDArray[np.intp]:
        """The output of every removal, in the order in which the layer makes them."""
        return np.argsort(self.increments, axis=None, kind="stable") % len(self.base)

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """Loss of the layer after 0, 1, 2, ... removals, shape (n_steps * n_outputs + 1,)."""
        # The k-th removal from an output costs its k-th increment, whatever the sorting said.
        grouped = np.argsort(self._outputs, kind="stable")
        costs = np.empty(grouped.size)
        costs[grouped] = self.increments.ravel(order="F")
        return np.cumsum(np.concatenate([[self.base.sum()], costs]))

    @property
    def output_losses(self) -> NDArray[np.float64]:
        """Loss of every output after 0, 1, 2, ... removals, shape (n_steps + 1, n_outputs)."""
        return np.cumsum(np.vstack([self.base, self.increments]), axis=0)

    def counts(self, nnz: int, *, per_output: bool = False) -> NDArray[np.int64]:
        """Return how many removals every output makes so that `nnz` weights are left.

        Parameters
        ----------
        nnz : int
        per_output : bool
            Whether every output makes equally many; odd ones go where they cost least.

        Returns
        -------
        counts : ndarray of int64, shape (n_outputs,)

        Raises
        ------
        ProblemError
            If the trace does not go that far.
        """
        steps, M = self.increments.shape
        least = (self.n_inputs - steps) * M
        if not least <= nnz <= self.n_inputs * M:
            raise ProblemError(
                f"nnz must lie between {least} and {self.n_inputs * M} for this trace, "
                f"but was {nnz}"
            )
        removals = self.n_inputs * M - nnz
        if not per_output:
            return np.bincount(self._outputs[:removals], minlength=M)
        share, odd = divmod(removals, M)
        counts = np.full(M, share)
        if odd:
            counts[np.argsort(self.increments[share], kind="stable")[:odd]] += 1
        return counts

    def counts_within(self, radius: ArrayLike) -> NDArray[np.int64]:
        """Return the most removals whose linear error stays within a radius.

        The distance to a target box never exceeds the linear error, so the radius of a
        :class:`Problem` is kept as well, usually with something to spare.

        Parameters
        ----------
        radius : float or array_like of shape (n_outputs,)
            One for the layer, or one for every output.

        Returns
        -------
        counts : ndarray of int64, shape (n_outputs,)

        Raises
        ------
        ProblemError
            If a radius is exceeded before any removal.
        """
        radius = np.asarray(radius, dtype=np.float64)
        losses = self.output_losses if radius.ndim else self.losses
        within = np.count_nonzero(losses <= radius**2, axis=0) - 1
        if np.any(within < 0):
            raise ProblemError(
                f"radius must be at least {np.sqrt(losses[0])}, the error before any removal, "
                f"but was {radius}"
            )
        if radius.ndim:
            return within
        return np.bincount(self._outputs[:within], minlength=len(self.base))

    def support(self, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return what stays after so many removals from every output, a mask.

        Parameters
        ----------
        counts : ndarray of int64, shape (n_outputs,)

        Returns
        -------
        mask : ndarray of bool, shape (n_inputs, n_outputs)
        """
        mask = np.ones((self.n_inputs, len(self.base)), dtype=bool)
        steps = np.arange(len(self.order))[:, None]
        np.put_along_axis(mask, self.order, steps >= counts, axis=0)
        return mask


@dataclass(frozen=True, eq=False)
class RawSolution:
    """What a solver module hands to :func:`nettrim_solver.solve`, before the judge has spoken.

    Attributes
    ----------
    W : ndarray of shape (n_inputs, n_outputs)
    b : ndarray of shape (n_outputs,) or None
    theta : ndarray of shape (n_samples, n_outputs) or None
        Dual point of the l1 norm (``|x_i^T theta| <= c_i``), when the solver has one.
    stops : list of Status, length n_outputs
        Why the solver stopped on each output (``UNPROVED``: by its own rule). What is proved is
        for the certificate to say.
    multiplier : ndarray of shape (n_outputs,) or None
        lambda of each output: the penalty for which the radius is met.
    rho, iterations : ndarray of shape (n_outputs,)
    ray : ndarray of shape (n_samples, n_outputs) or None
        Infeasibility rays (zero columns where there is none).
    seconds : dict
        Wall time of the solver's stages.
    warnings : tuple of str
    trace : RemovalTrace or None
        The order of all removals, of solvers that keep it.
    """

    W: NDArray[Any]
    b: NDArray[Any] | None
    theta: NDArray[np.float64] | None
    stops: list[Status]
    multiplier: NDArray[np.float64] | None = None
    rho: NDArray[np.float64] | None = None
    iterations: NDArray[np.int64] | None = None
    ray: NDArray[np.float64] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    trace: RemovalTrace | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """Sparse weights with their proof.

    Attributes
    ----------
    W : ndarray of shape (n_inputs, n_outputs)
        Pruned weights in the dtype of X, zeros exactly 0.0.
    b : ndarray of shape (n_outputs,) or None
        Intercept; None when the problem has none.
    status : Status
        The worst over the outputs.
    statuses : tuple of Status, length n_outputs
        ``OPTIMAL`` only where ``certificate`` proves it.
    certificate : Certificate
        Recomputed from the data for exactly these weights.
    theta : ndarray of shape (n_samples, n_outputs) or None
        The dual point that carries the proof: ``|x_i^T theta| <= c_i``, with equality on the
        support. Where the distance is E, theta is E over the multiplier (on the rows of a ball).
    multiplier : ndarray of shape (n_outputs,) or None
        The penalty lambda at which the penalised form has this solution.
    rho : ndarray of shape (n_outputs,) or None
        Final ADMM penalty, for warm starts.
    iterations : ndarray of shape (n_outputs,)
        Iterations spent on each output.
    least_epsilon : ndarray of shape (G,) or None
        Proved lower bound on the reachable radius, per radius; None when nothing is infeasible.
    solver : str
    seconds : dict of str to float
        Wall time: ``total``, ``certify`` and the solver's own stages.
    n_threads : int
        Threads in force.
    warnings : tuple of str
    trace : RemovalTrace or None
        The order of all removals, of pruners that keep it (solver "exact_obs"): it answers every
        other budget, through ``warm_start``.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem, solve
    >>> X = np.random.default_rng(0).standard_normal((60, 10))
    >>> Y = np.maximum(X @ np.eye(10)[:, :2], 0)
    >>> solution = solve(Problem(X, Y, tolerance=0.2))
    >>> str(solution.status), int(solution.certificate.nnz.sum()) < 20
    ('optimal', True)
    """

    W: NDArray[Any]
    b: NDArray[Any] | None
    status: Status
    statuses: tuple[Status, ...]
    certificate: Certificate
    theta: NDArray[np.float64] | None
    multiplier: NDArray[np.float64] | None
    rho: NDArray[np.float64] | None
    iterations: NDArray[np.int64]
    least_epsilon: NDArray[np.float64] | None
    solver: str
    seconds: dict[str, float]
    n_threads: int
    warnings: tuple[str, ...]
    trace: RemovalTrace | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in W."""
        return 1.0 - float(np.count_nonzero(self.W)) / self.W.size

    @property
    def nnz(self) -> int:
        """Number of nonzero weights."""
        return int(np.count_nonzero(self.W))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the pre-activations ``X @ W + b``, shape (n_samples, n_outputs)."""
        Z = np.asarray(X @ self.W)
        return Z if self.b is None else Z + self.b

    def __repr__(self) -> str:
        c = self.certificate
        return (
            f"Solution({self.solver}: {self.status}, sparsity {self.sparsity:.4f}, "
            f"objective {c.objective:.6g}, gap {c.gap:.1e}, violation {c.violation:.1e}, "
            f"{self.seconds['total']:.3g} s)"
        )

    def explain(self) -> str:
        """Return the status in words, with the remedy and the counts per outcome."""
        counts = {s: self.statuses.count(s) for s in dict.fromkeys(self.statuses)}
        lines = [f"{self.status}: {self.status.message}."]
        if self.status.remedy:
            lines.append(f"Remedy: {self.status.remedy}.")
        if self.least_epsilon is not None:
            least = float(np.max(self.least_epsilon))
            why = "" if np.isfinite(least) else " (the hard rows contradict each other)"
            lines.append(f"Least reachable epsilon: {least:.9g}{why}.")
        lines.append(", ".join(f"{count} outputs {status}" for status, count in counts.items()))
        return "\n".join(lines)

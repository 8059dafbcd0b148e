"""What every solver returns: weights, and what the judge says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .certificate import Certificate
from .status import Status


@dataclass(frozen=True, eq=False)
class RawSolution:
    """What a solver module hands to :func:`nettrim_solver.solve`, before the judge has spoken.

    Attributes
    ----------
    W : ndarray of shape (n_inputs, n_outputs)
    b : ndarray of shape (n_outputs,) or None
    theta : ndarray of shape (n_samples, n_outputs) or None
        Dual point, when the solver has one.
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
        The dual point that carries the proof.
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
            lines.append(f"Least reachable epsilon: {float(np.max(self.least_epsilon)):.9g}.")
        lines.append(", ".join(f"{count} outputs {status}" for status, count in counts.items()))
        return "\n".join(lines)

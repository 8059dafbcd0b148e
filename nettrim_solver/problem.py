"""One layer's pruning problem as data; every check of a user's input lives here."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from .activations import Activation, get_activation
from .exceptions import ProblemError
from .problem_checks import (
    LARGEST,
    SMALLEST,
    check_match,
    check_range,
    check_size,
    check_weight_size,
    checked_box,
    checked_choice,
    checked_matrix,
    checked_vector,
    numeric,
    read_only,
)

Array = NDArray[np.float64]
Formulation = Literal["pooled", "strict", "penalised", "penalised_strict"]
Radius = Literal["joint", "per_output"]

FORMULATIONS = ("pooled", "strict", "penalised", "penalised_strict")
RADII = ("joint", "per_output")

#: A stored pre-activation must reproduce Y to this, relative to 1 + max |Y|: the rounding of a
#: network evaluated in single precision, and far below what pruned inputs would cause.
STORED_AGREEMENT = 1e-3


class Problem:
    r"""The layer problem: sparsest weights whose pre-activations stay near a target box.

    With the box ``K = {Z : lower <= Z <= upper}`` of the pre-activations that reproduce Y, the
    distance ``dist(Z, K) = ||Z - clip(Z, lower, upper)||`` and ``Z = X W + b``, the formulations
    are

    - ``"pooled"``: ``min sum c |W|  s.t.  dist(Z, K) <= epsilon``;
    - ``"strict"`` (the paper's program): the ball holds the matched rows (lower = upper) alone, and
      all other rows are hard: ``lower <= Z <= upper``;
    - ``"penalised"``: ``min lambda_ sum c |W| + 1/2 dist(Z, K)^2``;
    - ``"penalised_strict"``: the same with the hard rows of ``"strict"`` (a quadratic program).

    Either bounds the activation error: ``||f(Z) - Y|| <= lipschitz(f) dist(Z, K)``.

    Parameters
    ----------
    X : array_like or scipy.sparse matrix, shape (n_samples, n_inputs)
        Inputs of the layer. float32 and float64 are kept, integers become float64. The problem
        keeps a read-only view, not a copy, where it can: leave X alone while you use the problem.
    Y : array_like, shape (n_samples, n_outputs), optional
        Outputs of the trained layer, after the activation. A vector is one output.
        Instead of Y, the box may be given by `lower` and `upper`.
    W : array_like, shape (n_inputs, n_outputs), optional
        Trained weights. Net-Trim does not need them; solvers that start from them do.
    b : array_like, shape (n_outputs,), optional
        Trained intercept; needs ``intercept=True``.
    activation : str or Activation
        See :mod:`nettrim_solver.activations`.
    epsilon : float or array_like of shape (n_outputs,), optional
        The radius: one number for the layer's Frobenius norm (``radius="joint"``), or a number for
        all or one for each output (``radius="per_output"``). Same unit as the pre-activations.
    tolerance : float, optional
        Relative radius g instead of epsilon: ``epsilon = g ||Y||_F`` or ``g ||y_j||``. With a box
        in place of Y the norm is ``dist(0, K)``, which is the same for identity and ReLU.
    lambda_ : float or array_like of shape (n_outputs,), optional
        Penalty, for the penalised formulations.
    radius : {"joint", "per_output"}
        Whether the outputs share one radius.
    formulation : {"pooled", "strict", "penalised", "penalised_strict"}
        See above.
    weights : array_like, shape (n_inputs,) or (n_inputs, n_outputs), optional
        The l1 weights c >= 0; 0 leaves an input unpenalised. Ones by default.
    intercept : bool
        Whether an unpenalised intercept b is solved for.
    Z : array_like, shape (n_samples, n_outputs), optional
        Stored pre-activations of the trained layer, for activations without a stable inverse
        (those with `needs_preactivation`, such as tanh). ``X @ W + b`` when omitted and W is given.
        What solvers and refits with a linear target aim at, within the box; no part of the program.
    lower, upper : array_like, shape (n_samples, n_outputs), optional
        The box itself; entries may be infinite.

    Raises
    ------
    ProblemError
        For any unusable argument, before any work.

    References
    ----------
    Aghasi, Abdi, Nguyen, Romberg, *Net-Trim*, NIPS 2017, eq. C_eps(X, Y, V) (strict).

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((50, 8))
    >>> Y = np.maximum(X @ np.eye(8)[:, :3], 0)
    >>> Problem(X, Y, tolerance=0.1)
    Problem(X (50, 8) float64, 3 outputs, relu, pooled, joint epsilon=0.784...)
    """

    def __init__(
        self,
        X: Any,
        Y: ArrayLike | None = None,
        W: ArrayLike | None = None,
        b: ArrayLike | None = None,
        *,
        activation: str | Activation = "relu",
        epsilon: ArrayLike | None = None,
        tolerance: float | None = None,
        lambda_: ArrayLike | None = None,
        radius: Radius = "joint",
        formulation: Formulation = "pooled",
        weights: ArrayLike | None = None,
        intercept: bool = True,
        Z: ArrayLike | None = None,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
    ) -> None:
        self.formulation = checked_choice("formulation", formulation, FORMULATIONS)
        self.radius = checked_choice("radius", radius, RADII)
        if not isinstance(intercept, (bool, np.bool_)):
            raise ProblemError(
                f"intercept must be True or False, but was {intercept!r}; "
                "the trained intercept goes into b"
            )
        self.intercept = bool(intercept)
        self.X = checked_matrix("X", X, allow_sparse=True)
        if (lower is None) != (upper is None):
            raise ProblemError("lower and upper must be given together, but one is missing")
        if (Y is None) == (lower is None):
            raise ProblemError("give either Y or the box (lower and upper), and not both")
        self.activation: Activation | None = None
        self.Y: NDArray[Any] | None = None
        self.lower: NDArray[Any] | None = None
        self.upper: NDArray[Any] | None = None
        if Y is None:
            self.lower, self.upper = checked_box(lower, upper, self.n_samples)
            self._shape_source, self.n_outputs = "lower", self.lower.shape[1]
        else:
            self.activation = get_activation(activation)
            self.Y = checked_matrix("Y", Y)
            check_match("Y", self.Y.shape[0], "X", self.n_samples, "samples (rows)")
            self.activation.check_outputs(self.Y.shape[1])
            self._shape_source, self.n_outputs = "Y", self.Y.shape[1]
            check_range(self.Y, self.activation)
        self.W = self._checked_weights(W)
        self.b = self._checked_intercept(b)
        self.Z = self._checked_preactivation(Z)
        self.weights = self._checked_penalty(weights)
        check_weight_size(self.X, self._target_size(), self.dtype)
        self.tolerance = tolerance
        self.epsilon, self.lambda_ = self._checked_budget(epsilon, tolerance, lambda_)

    # Shapes and kinds -------------------------------------------------------------------------

    @property
    def n_samples(self) -> int:
        """Number of rows of X (P in the papers)."""
        return int(self.X.shape[0])

    @property
    def n_inputs(self) -> int:
        """Number of columns of X (N)."""
        return int(self.X.shape[1])

    @property
    def penalised(self) -> bool:
        """Whether the distance is penalised (``lambda_``) instead of bounded (``epsilon``)."""
        return self.formulation.startswith("penalised")

    @property
    def strict(self) -> bool:
        """Whether rows with lower < upper are hard constraints."""
        return self.formulation.endswith("strict")

    @property
    def joint(self) -> bool:
        """Whether one radius couples the outputs (never so for the penalised formulations)."""
        return self.radius == "joint" and not self.penalised

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of X, in which weights are returned."""
        return np.dtype(self.X.dtype)

    def __repr__(self) -> str:
        what = "box" if self.activation is None else self.activation.name
        if self.penalised:
            budget = f"lambda_={_short(self.lambda_)}"
        else:
            budget = f"{'joint' if self.joint else 'per-output'} epsilon={_short(self.epsilon)}"
        kind = "sparse " if sp.issparse(self.X) else ""
        return (
            f"Problem(X {self.X.shape} {kind}{self.dtype}, {self.n_outputs} outputs, {what}, "
            f"{self.formulation}, {budget})"
        )

    # The box ----------------------------------------------------------------------------------

    def box(self, columns: Any = slice(None)) -> tuple[Array, Array]:
        """Return the box of some outputs: ``lower`` and ``upper``, float64, (n_samples, m).

        Made on demand, so that a problem holds no more than what the user gave.
        """
        if self.lower is not None and self.upper is not None:
            return (
                self.lower[:, columns].astype(np.float64),
                self.upper[:, columns].astype(np.float64),
            )
        assert self.activation is not None and self.Y is not None
        if self.activation.needs_preactivation:
            assert self.Z is not None
            point = self.Z[:, columns].astype(np.float64)
            return point, point
        return self.activation.select(columns).preimage(self.Y[:, columns].astype(np.float64))

    def penalty(self, columns: Any = slice(None)) -> Array:
        """Return the l1 weights of some outputs, float64, shape (n_inputs, 1) or (n_inputs, m)."""
        return self.weights[:, None] if self.weights.ndim == 1 else self.weights[:, columns]

    @cached_property
    def target_norms(self) -> Array:
        """``dist(0, K)`` per output, shape (n_outputs,): the scale of the targets."""
        norms = np.empty(self.n_outputs)
        for start in range(0, self.n_outputs, 64):
            columns = slice(start, start + 64)
            lower, upper = self.box(columns)
            norms[columns] = np.sqrt(np.sum(np.clip(0.0, lower, upper) ** 2, axis=0))
        return norms

    # Related problems ---------------------------------------------------------------------------

    def select(self, columns: Any) -> Problem:
        """Return the problem of some outputs alone (index array or slice), without new checks.

        A joint radius stays as it is: it then belongs to these outputs.
        """
        changes: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[:, columns]
            for name in ("Y", "W", "Z", "lower", "upper")
        }
        changes["b"] = None if self.b is None else self.b[columns]
        changes["n_outputs"] = len(np.arange(self.n_outputs)[columns])
        if self.activation is not None:
            changes["activation"] = self.activation.select(columns)
        if self.weights.ndim == 2:
            changes["weights"] = self.weights[:, columns]
        for name in ("epsilon", "lambda_"):
            level = getattr(self, name)
            changes[name] = level[columns] if isinstance(level, np.ndarray) else level
        return self._copy(**changes)

    def samples(self, rows: Any) -> Problem:
        """Return the problem of some samples alone (slice or index array), without new checks.

        The radius stays as it is, although it was meant for all samples.
        """
        names = ("X", "Y", "Z", "lower", "upper")
        given = {name: getattr(self, name) for name in names}
        return self._copy(**{k: None if v is None else v[rows] for k, v in given.items()})

    def least_distance(self) -> Problem:
        """Return the problem of the least reachable distance: penalised, without l1 weights."""
        return self._copy(
            formulation="penalised_strict" if self.strict else "penalised",
            weights=np.zeros(self.n_inputs), epsilon=None, tolerance=None, lambda_=1.0,
        )  # fmt: skip

    def penalise(self, lambda_: float | Array) -> Problem:
        """Return the penalised form of this problem, without new checks of the data."""
        return self._copy(
            formulation="penalised_strict" if self.strict else "penalised",
            epsilon=None, tolerance=None, lambda_=self._checked_levels("lambda_", lambda_, True),
        )  # fmt: skip

    def within(self, epsilon: float | Array) -> Problem:
        """Return this problem for other radii, without new checks of the data.

        One number is a joint radius; an array holds one radius per output.
        """
        level = self._checked_levels("epsilon", epsilon)
        return self._copy(
            formulation="strict" if self.strict else "pooled", lambda_=None, tolerance=None,
            radius="joint" if isinstance(level, float) else "per_output", epsilon=level,
        )  # fmt: skip

    def hard_rows(self) -> Problem:
        """Return the pooled problem of the hard rows alone: the matched rows are set free."""
        lower, upper = self.box()
        matched = lower == upper
        return self._copy(
            Y=None, activation=None, Z=None, formulation="pooled",
            lower=np.where(matched, -np.inf, lower), upper=np.where(matched, np.inf, upper),
        )  # fmt: skip

    def _copy(self, **changes: Any) -> Problem:
        other = copy.copy(self)
        other.__dict__.pop("target_norms", None)
        other.__dict__.update(changes)
        return other

    # Other budgets, files ---------------------------------------------------------------------

    def replace(self, **changes: Any) -> Problem:
        """Return a problem that differs in the given constructor arguments.

        A new `epsilon`, `tolerance` or `lambda_` replaces the old budget, whichever that was.

        Examples
        --------
        >>> import numpy as np
        >>> problem = Problem(np.eye(3), np.ones((3, 1)), epsilon=0.5)
        >>> problem.replace(epsilon=0.25).epsilon
        0.25
        """
        arguments = self._arguments()
        if not {"epsilon", "tolerance", "lambda_"}.isdisjoint(changes):
            arguments |= {"epsilon": None, "tolerance": None, "lambda_": None}
        elif not {"Y", "lower", "radius"}.isdisjoint(changes) and self.tolerance is not None:
            arguments["epsilon"] = None  # computed anew from the tolerance
        if "Y" in changes and changes["Y"] is not None:
            arguments |= {"lower": None, "upper": None, "Z": None}
        if "lower" in changes and changes["lower"] is not None:
            arguments |= {"Y": None, "Z": None}
        unknown = sorted(set(changes) - set(arguments))
        if unknown:
            raise ProblemError(f"replace() knows {sorted(arguments)}, but was given {unknown}")
        return Problem(**(arguments | changes))

    def save(self, path: Any) -> None:
        """Write the problem to an ``.npz`` file, all or nothing (see :func:`.save_problem`)."""
        from .problem_file import save_problem

        save_problem(self, path)

    @classmethod
    def load(cls, path: Any) -> Problem:
        """Read a problem from an ``.npz`` file written by :meth:`save` (never unpickles)."""
        from .problem_file import load_problem

        return load_problem(path)

    def _arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments that rebuild this problem."""
        return {
            "X": self.X, "Y": self.Y, "W": self.W, "b": self.b,
            "activation": self.activation or "relu",
            "epsilon": None if self.tolerance is not None else self.epsilon,
            "tolerance": self.tolerance, "lambda_": self.lambda_,
            "radius": self.radius, "formulation": self.formulation, "weights": self.weights,
            "intercept": self.intercept, "Z": self.Z, "lower": self.lower, "upper": self.upper,
        }  # fmt: skip

    # Checks -----------------------------------------------------------------------------------

    def _checked_weights(self, given: ArrayLike | None) -> NDArray[Any] | None:
        if given is None:
            return None
        W: NDArray[Any] = checked_matrix("W", given)
        check_match("W", W.shape[0], "X", self.n_inputs, "inputs (rows of W, columns of X)")
        check_match("W", W.shape[1], self._shape_source, self.n_outputs, "outputs (columns)")
        return W

    def _checked_intercept(self, b: ArrayLike | None) -> NDArray[Any] | None:
        if b is None:
            return None
        if not self.intercept:
            raise ProblemError(
                "b was given with intercept=False; set intercept=True, "
                "or subtract b from the target"
            )
        b = checked_vector("b", b, self.n_outputs, "n_outputs")
        if not np.all(np.isfinite(b)):
            raise ProblemError("b must be finite, but holds NaN or infinite entries")
        return b

    def _checked_preactivation(self, Z: ArrayLike | None) -> NDArray[Any] | None:
        activation, Y = self.activation, self.Y
        if activation is None or Y is None or not activation.needs_preactivation:
            return None if Z is None else self._matched_preactivation(Z)
        if Z is None and self.W is None:
            raise ProblemError(
                f"activation {activation.name!r} has no stable inverse: give Z "
                "(the stored pre-activations), or the trained W and b that make it"
            )
        if Z is None:
            Z = np.asarray(self.X @ self.W) + (0.0 if self.b is None else self.b)
        stored = self._matched_preactivation(Z)
        error = float(np.max(np.abs(activation(stored.astype(np.float64)) - Y)))
        if error > STORED_AGREEMENT * (1.0 + float(np.max(np.abs(Y)))):
            raise ProblemError(
                f"Z (or X @ W + b) must reproduce Y through {activation.name!r}, but the largest "
                f"difference is {error:.3g}; in a cascade pass the original layer's Z"
            )
        return stored

    def _matched_preactivation(self, given: ArrayLike) -> NDArray[Any]:
        Z: NDArray[Any] = checked_matrix("Z", given)
        if Z.shape != (self.n_samples, self.n_outputs):
            raise ProblemError(
                f"Z must have the shape of Y, {(self.n_samples, self.n_outputs)}, but has {Z.shape}"
            )
        return Z

    def _checked_penalty(self, weights: ArrayLike | None) -> Array:
        if weights is None:
            return read_only(np.ones(self.n_inputs))
        c = numeric("weights", weights).astype(np.float64)
        if c.shape not in ((self.n_inputs,), (self.n_inputs, self.n_outputs)):
            raise ProblemError(
                f"weights must have shape ({self.n_inputs},) or ({self.n_inputs}, "
                f"{self.n_outputs}), but has {c.shape}"
            )
        if not np.all(np.isfinite(c)) or np.any(c < 0):
            raise ProblemError(f"weights must be finite and >= 0, but the least is {c.min():g}")
        check_size("weights", c.ravel())
        return read_only(c)

    def _checked_budget(
        self, epsilon: ArrayLike | None, tolerance: float | None, lambda_: ArrayLike | None
    ) -> tuple[float | Array | None, float | Array | None]:
        if self.penalised:
            if epsilon is not None or tolerance is not None:
                raise ProblemError(
                    f"formulation {self.formulation!r} takes lambda_, not epsilon or tolerance"
                )
            if lambda_ is None:
                raise ProblemError(f"lambda_ must be given for formulation {self.formulation!r}")
            level = self._checked_levels("lambda_", lambda_, positive=True)
            self._check_penalty_size(level)
            return None, level
        if lambda_ is not None:
            raise ProblemError(
                "lambda_ belongs to the penalised formulations, but formulation was "
                f"{self.formulation!r}"
            )
        if epsilon is not None and tolerance is not None:
            raise ProblemError("give epsilon or tolerance, and not both")
        if epsilon is not None:
            level = self._checked_levels("epsilon", epsilon)
            if self.radius == "joint" and not isinstance(level, float):
                raise ProblemError(
                    f"epsilon must be one number for radius='joint', but has shape {level.shape}; "
                    "use radius='per_output' for one radius per output"
                )
            return (np.broadcast_to(level, (self.n_outputs,)) if not self.joint else level), None
        if tolerance is None:
            return None, None
        g = self._checked_levels("tolerance", tolerance)
        if not isinstance(g, float):
            raise ProblemError(
                f"tolerance must be one number, but has shape {g.shape}; "
                "use epsilon for one radius per output"
            )
        if self.Y is None:
            norms = self.target_norms
        else:
            norms = np.sqrt(np.einsum("ij,ij->j", self.Y, self.Y, dtype=np.float64))
        return (g * float(np.linalg.norm(norms)) if self.joint else read_only(g * norms)), None

    def _target_size(self) -> float:
        """Return the largest pre-activation that is asked for."""
        if self.lower is not None and self.upper is not None:
            return float(np.abs(np.clip(0.0, self.lower, self.upper)).max())
        given = self.Z if self.Z is not None else self.Y
        return float(np.abs(given).max())  # type: ignore[arg-type]

    def _check_penalty_size(self, level: float | Array) -> None:
        """Check that a penalty is neither beyond all others nor nothing beside the distance."""
        entries = self.X.data if sp.issparse(self.X) else self.X
        unit = float(np.abs(entries).max(initial=0.0)) * self._target_size()
        if unit == 0.0 or not np.any(self.weights):
            return
        low, high = (end * unit / float(self.weights.max()) for end in (SMALLEST, LARGEST))
        if np.any(level < low) or np.any(level > high):
            raise ProblemError(
                f"lambda_ must lie between {low:g} and {high:g} for inputs, targets and weights of "
                f"these sizes, but was {np.max(level) if np.any(level > high) else np.min(level):g}"
            )

    def _checked_levels(self, name: str, value: Any, positive: bool = False) -> float | Array:
        level = numeric(name, value).astype(np.float64)
        rule = "positive" if positive else ">= 0"
        if level.size == 0 or not np.all(np.isfinite(level)):
            raise ProblemError(f"{name} must be finite and {rule}, but was {value!r}")
        if np.any(level < 0) or (positive and np.any(level == 0)):
            raise ProblemError(f"{name} must be {rule}, but the least is {level.min():g}")
        if not positive and np.any(level > LARGEST):
            raise ProblemError(f"{name} must be at most {LARGEST:g}, but was {level.max():g}")
        if level.ndim == 0:
            return float(level)
        if level.shape != (self.n_outputs,):
            raise ProblemError(
                f"{name} must be one number or of shape ({self.n_outputs},), but has {level.shape}"
            )
        return read_only(level)


def _short(level: Any) -> str:
    if level is None:
        return "None"
    if isinstance(level, float):
        return f"{level:.6g}"
    return f"[{np.min(level):.3g}..{np.max(level):.3g}]"

r"""One trial of the benchmark ``sample_complexity``: how many samples give planted weights back?

A trial draws s-sparse weights w and a stream of inputs, and finds the least number of its first
samples from which w is the only solution of

    min |v|_1   s.t.   x_p^T v = x_p^T w  where  x_p^T w > 0  (matched rows),
                       x_p^T v <= 0       elsewhere.

That is Net-Trim at radius zero, strict and pooled alike. More samples leave fewer candidates and
never w out, so recovery is monotone in their number and bisection finds the least one.

Rows with ``x_p^T w < 0`` have slack at w and cannot matter: from a better v elsewhere, a short
step ``w + t (v - w)`` keeps them. So the program is that of the matched rows alone (``matched``),
but for *tight* rows, ``x_p^T w = 0``, which occur where inputs are exactly zero (``net_trim``).

Every verdict has a proof of its own, recomputed from the rows. Recovered: a dual point theta with
``X^T theta = sign(w)`` on the support, ``|X^T theta| < 1`` off it, ``theta <= 0`` on tight rows,
and the support's columns independent, so that w is the unique solution; and the solver's answer,
which knows nothing of w, is w. Not recovered: other weights that fit and have no larger l1 norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular, svd

from nettrim_solver.demo import load_demo_network
from nettrim_solver.network import Activate
from nettrim_solver.sample_size import statistical_dimension

Array = NDArray[np.float64]

#: Kinds of inputs, in the order of their random seeds.
KINDS = ("gaussian", "rademacher", "uniform", "hidden")

#: Off the support |X^T theta| must stay this far below 1.
MARGIN = 1e-6

#: Relative distances up to which an answer is the planted one, and from which it is another.
SAME, OTHER = 1e-6, 1e-3

#: Rounding of residuals, slopes and norms, relative to their size.
ROUNDING = 1e-9

#: Singular values below this fraction of the largest are zero.
RANK = 1e-9

#: Iterations after which a case is left undecided, and those between two checks.
MAX_ITERATIONS, CHECK_INTERVAL = 5000, 10

#: Soft threshold of the first iterations, relative to the largest weight of least squares.
THRESHOLD, RELAXATION = 0.5, 1.7

#: Share of the stream on which a planted neuron is active, at least and at most.
ACTIVE = (0.25, 0.75)

#: The least number of rows is found up to this fraction of it.
RESOLUTION = 0.01


@dataclass(frozen=True)
class Line:
    """All trials of one kind of inputs, width and number of nonzeros."""

    kind: str
    n_inputs: int
    nnz: int

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.kind} {self.n_inputs} {self.nnz}"


@dataclass(frozen=True)
class Verdict:
    """Whether the planted weights are the only solution.

    Attributes
    ----------
    recovered : bool or None
        None when neither proof was found.
    margin : float
        ``1 - max |X^T theta|`` off the support, or the fraction by which the l1 norm is smaller.
    distance : float
        Relative distance of the solver's answer, or of the other weights, to the planted ones.
    iterations : int
    """

    recovered: bool | None
    margin: float
    distance: float
    iterations: int


def trial(line: Line, number: int) -> dict[str, Any]:
    """Return the least numbers of samples of one trial; None where all there are do not do."""
    tick = time.perf_counter()
    X, w = instance(line, number)
    z = X @ w
    found: dict[str, Any] = {"line": line.key, "trial": number, "undecided": 0}
    programs = {"matched": np.flatnonzero(z > 0)}
    if np.any(z == 0):
        programs["net_trim"] = np.flatnonzero(z >= 0)
    for name, rows in programs.items():
        guess = round(statistical_dimension(line.n_inputs, line.nnz))
        works, fails, verdicts = least_count(
            lambda k, rows=rows: judge(X[rows[:k]], z[rows[:k]] == 0, w), line.nnz, len(rows), guess
        )
        found[name] = int(rows[works - 1]) + 1 if works in verdicts else None
        found["undecided"] += sum(v.recovered is None for v in verdicts.values())
        edges = {"recovered": verdicts.get(works), "not": verdicts.get(fails)}
        found["proofs"] = {k: asdict(v) for k, v in edges.items() if v is not None}
    # Without tight rows the two programs have one answer.
    found.setdefault("net_trim", found["matched"])
    found["seconds"] = round(time.perf_counter() - tick, 4)
    return found


def instance(line: Line, number: int) -> tuple[Array, Array]:
    """Return the stream of inputs of a trial, and its weights.

    Weights with which the neuron is hardly ever or nearly always active are drawn anew. That
    happens with inputs of one sign alone; trained neurons have an intercept against it.
    """
    rng = np.random.default_rng([2017, KINDS.index(line.kind), line.n_inputs, line.nnz, number])
    X = inputs(line.kind, rng, line.n_inputs)
    while True:
        w = planted_weights(rng, line.n_inputs, line.nnz)
        if ACTIVE[0] <= np.mean(X @ w > 0) <= ACTIVE[1]:
            return X, w


def planted_weights(rng: np.random.Generator, n_inputs: int, nnz: int) -> Array:
    """Return weights on a random support, with random signs and sizes away from zero."""
    w = np.zeros(n_inputs)
    support = rng.choice(n_inputs, nnz, replace=False)
    w[support] = rng.uniform(0.3, 1.5, nnz) * rng.choice([-1.0, 1.0], nnz)
    return w


def inputs(kind: str, rng: np.random.Generator, n_inputs: int) -> Array:
    """Return a stream of inputs, long enough that about half of it determines any weights.

    The random kinds have independent entries of mean 0 and variance 1. ``hidden`` shuffles the
    signals of the demonstration network's hidden layer of that many live neurons.
    """
    if kind == "hidden":
        return rng.permutation(hidden_signals()[n_inputs])
    shape = (2 * n_inputs + 12 * int(np.sqrt(n_inputs)) + 40, n_inputs)
    if kind == "gaussian":
        return rng.standard_normal(shape)
    if kind == "rademacher":
        return 2.0 * rng.integers(0, 2, shape) - 1.0
    return rng.uniform(-np.sqrt(3.0), np.sqrt(3.0), shape)


@cache
def hidden_signals() -> dict[int, Array]:
    """Return the hidden signals of the demonstration's network on all its images, by width.

    Neurons that are never active are left out: nothing can be known of their weights.
    """
    digits = load_demo_network()
    images = np.concatenate([digits.X_train, digits.X_test])
    layers = [Y for op, _, Y in digits.network.signals(images) if isinstance(op, Activate)]
    live = [signals[:, signals.any(axis=0)] for signals in layers]
    return {signals.shape[1]: signals for signals in live}


def least_count(
    decide: Callable[[int], Verdict], low: int, high: int, guess: int
) -> tuple[int, int, dict[int, Verdict]]:
    """Return the least count that recovers, the largest that does not, and all verdicts by count.

    Counts lie in [low, high]; one outside stands for "none of them". Steps of growing length from
    the guess, then bisection up to ``RESOLUTION``. An undecided count is taken as not recovering.
    """
    verdicts: dict[int, Verdict] = {}

    def recovers(count: int) -> bool:
        verdicts[count] = decide(count)
        return bool(verdicts[count].recovered)

    fails, works = low - 1, high + 1
    count, step = min(max(guess, low), high), max(2, guess // 16)
    while fails + 1 < works:
        if recovers(count):
            works = count
        else:
            fails = count
        if works <= high and fails >= low and works - fails <= max(1, RESOLUTION * works):
            break
        if works > high:
            count, step = min(count + step, high), 2 * step
        elif fails < low:
            count, step = max(count - step, low), 2 * step
        else:
            count = (fails + works) // 2
    return works, fails, verdicts


def judge(rows: Array, tight: NDArray[np.bool_], planted: Array) -> Verdict:
    """Decide whether the planted weights are the only solution on these rows.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_inputs)
        Matched and tight rows.
    tight : ndarray of shape (n_rows,), bool
    planted : ndarray of shape (n_inputs,)

    Notes
    -----
    Douglas-Rachford splitting between the l1 norm and the affine set of what fits, with a slack
    v >= 0 for each tight row: ``x_p^T w + v_p = 0``. The set is projected onto by an orthonormal
    basis of the rows, two products with it in an iteration. It learns of the planted weights
    through that set alone.
    """
    n = len(planted)
    equations = np.hstack([rows, np.eye(len(rows))[:, tight]]) if tight.any() else rows
    proof = Proof.of(equations, planted)
    if proof is None:
        return Verdict(False, 0.0, np.inf, 0)
    basis = proof.basis
    target = basis[:n].T @ planted
    norm = np.abs(planted).sum()
    threshold = THRESHOLD * np.abs(basis[:n] @ target).max()
    state = np.zeros(equations.shape[1])
    for iteration in range(MAX_ITERATIONS):
        short = target - basis.T @ state
        fitting = state + basis @ short
        reflected = 2 * fitting - state
        sparse = np.sign(reflected) * np.maximum(np.abs(reflected) - threshold, 0.0)
        sparse[n:] = np.maximum(reflected[n:], 0.0)
        if iteration % CHECK_INTERVAL == 0:
            less = 1.0 - np.abs(fitting[:n]).sum() / norm
            apart = distance(fitting[:n], planted)
            if less > -ROUNDING and apart > OTHER and fits(rows, tight, fitting[:n], planted):
                return Verdict(False, float(less), apart, iteration)
            margin = proof.margin(short / threshold)
            if margin > MARGIN:
                found = distance(polished(rows[~tight], sparse[:n], planted), planted)
                if found <= SAME:
                    return Verdict(True, margin, found, iteration)
        state += RELAXATION * (sparse - fitting)
    return Verdict(None, 0.0, distance(sparse[:n], planted), MAX_ITERATIONS)


@dataclass(frozen=True, eq=False)
class Proof:
    """Makes dual points of the equations exact on the planted support, and measures the rest.

    Attributes
    ----------
    equations : ndarray of shape (n_rows, n_inputs + n_tight)
        Matched and tight rows; a tight row has a slack of its own.
    basis, triangle : ndarray of shape (n_inputs + n_tight, rank) and (rank, n_rows)
        Orthonormal basis of the rows' span, and the rows in it.
    support : ndarray of int, shape (nnz,)
    signs : ndarray of float, shape (nnz,)
    inner, corner : ndarray of shape (rank, nnz) and (nnz, nnz)
        QR factors of the transposed basis on the support.
    """

    equations: Array
    basis: Array
    triangle: Array
    support: NDArray[np.int64]
    signs: Array
    inner: Array
    corner: Array
    n_inputs: int

    @classmethod
    def of(cls, equations: Array, planted: Array) -> Proof | None:
        """Prepare; None when the columns of the support are dependent, so that w is not unique."""
        basis, triangle = row_space(equations)
        support = np.flatnonzero(planted)
        if basis.shape[1] < len(support):
            return None
        inner, corner = qr(basis[support].T, mode="economic", check_finite=False)
        if np.abs(np.diag(corner)).min() < RANK:
            return None
        signs = np.sign(planted[support])
        return cls(equations, basis, triangle, support, signs, inner, corner, len(planted))

    def margin(self, coordinates: Array) -> float:
        """Return ``1 - max |X^T theta|`` off the support for the nearest exact point; 0 if none.

        The slopes ``X^T theta`` are given by their coordinates in the basis. Once they promise a
        proof, theta itself is computed, and judged by the rows alone.
        """
        missing = self.signs - self.basis[self.support] @ coordinates
        coordinates = coordinates + self.inner @ solve_triangular(self.corner, missing, trans="T")
        if self._margin(self.basis @ coordinates) <= MARGIN:
            return 0.0
        if self.triangle.shape[0] == self.triangle.shape[1]:
            theta = solve_triangular(self.triangle, coordinates)
        else:
            theta = np.linalg.lstsq(self.triangle, coordinates, rcond=None)[0]
        return self._margin(self.equations.T @ theta)

    def _margin(self, slopes: Array) -> float:
        wrong = np.abs(slopes[self.support] - self.signs).max()
        illegal = slopes[self.n_inputs :].max(initial=0.0)  # entries of theta at tight rows
        if max(wrong, illegal) > ROUNDING:
            return 0.0
        off = np.abs(slopes[: self.n_inputs])
        off[self.support] = 0.0
        return float(1.0 - off.max())


def row_space(equations: Array) -> tuple[Array, Array]:
    """Return an orthonormal basis of the rows' span, one a column, and the rows in it."""
    basis, triangle = qr(equations.T, mode="economic", check_finite=False)
    sizes = np.abs(np.diag(triangle))
    if sizes.min() > RANK * sizes.max():
        return basis, triangle
    left, values, right = svd(equations.T, full_matrices=False)
    rank = np.count_nonzero(values > RANK * values[0])
    return left[:, :rank], values[:rank, None] * right[:rank]


def fits(rows: Array, tight: NDArray[np.bool_], w: Array, planted: Array) -> bool:
    """Return whether weights fit matched rows as the planted do, and keep the tight ones."""
    change = rows @ (w - planted)
    limit = ROUNDING * np.abs(rows @ planted).max()
    return bool(np.abs(change[~tight]).max() <= limit and change[tight].max(initial=0.0) <= limit)


def polished(matched: Array, sparse: Array, planted: Array) -> Array:
    """Return the weights on the support of a sparse iterate that fit the matched rows best."""
    support = np.flatnonzero(sparse)
    w = np.zeros_like(sparse)
    if len(support) <= len(matched):
        w[support] = np.linalg.lstsq(matched[:, support], matched @ planted, rcond=None)[0]
    return w


def distance(w: Array, planted: Array) -> float:
    """Return the distance of weights to the planted ones, relative to their norm."""
    return float(np.linalg.norm(w - planted) / np.linalg.norm(planted))

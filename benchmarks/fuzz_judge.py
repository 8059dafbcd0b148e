"""An independent judge of answers, from the definitions and in extended precision, and an arbiter.

Nothing of `nettrim_solver` is imported here: boxes, radii, distances and dual bounds are written
anew, in ``np.longdouble``, and Clarabel solves the programs as they stand. Outputs that a joint
radius couples are one group, others are groups of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Array = NDArray[Any]
LONG = np.longdouble

#: Distances below this share of the targets are rounding of float64.
ROUNDING = 1e-12

#: Share of its own scale by which an arbiter's point may miss a row or the radius.
ARBITER_FEASIBLE = 1e-8


@dataclass
class Group:
    """Outputs with one radius, as plain float64 data: X (P, N), box (P, m), c (N, m)."""

    X: Array
    lower: Array
    upper: Array
    c: Array
    level: float
    strict: bool
    penalised: bool
    intercept: bool
    columns: list[int]

    @property
    def ball(self) -> Array:
        """Which rows the radius is about."""
        return (self.lower == self.upper) | (not self.strict)


def groups_of(arguments: dict[str, Any]) -> list[Group]:
    """Return the groups of a problem from its constructor's arguments."""
    X = arguments["X"]
    X = (X.toarray() if sp.issparse(X) else np.asarray(X)).astype(np.float64)
    lower, upper, Y = _box(arguments)
    M, form = lower.shape[1], arguments["formulation"]
    c = np.asarray(arguments.get("weights", np.ones(X.shape[1])), dtype=np.float64)
    c = np.broadcast_to(c[:, None] if c.ndim == 1 else c, (X.shape[1], M))
    penalised = form.startswith("penalised")
    joint = arguments["radius"] == "joint" and not penalised
    if penalised:
        levels = np.broadcast_to(np.asarray(arguments["lambda_"], float), M)
    elif "tolerance" in arguments:
        unit = float(np.abs(Y).max()) or 1.0
        norms = unit * np.sqrt(np.sum((Y / unit).astype(LONG) ** 2, axis=0))
        size = unit * np.sqrt(np.sum((norms / unit) ** 2))
        levels = np.broadcast_to(arguments["tolerance"] * (size if joint else norms), M)
    else:
        levels = np.broadcast_to(np.asarray(arguments["epsilon"], float), M)
    parts = [list(range(M))] if joint else [[j] for j in range(M)]
    return [
        Group(
            X, lower[:, part], upper[:, part], c[:, part], float(levels[part[0]]),
            form.endswith("strict"), penalised, arguments["intercept"], part,
        )
        for part in parts
    ]  # fmt: skip


def _box(arguments: dict[str, Any]) -> tuple[Array, Array, Array]:
    """Return lower and upper ends of the pre-activations that give Y, and Y (or a stand-in)."""
    if "lower" in arguments:
        lower, upper = arguments["lower"], arguments["upper"]
        return lower, upper, np.clip(0.0, lower, upper)
    name, Y = arguments["activation"], np.asarray(arguments["Y"], dtype=np.float64)
    if name == "tanh":
        return arguments["Z"], arguments["Z"], Y
    if name == "leaky_relu":
        point = np.where(Y >= 0, Y, Y / 0.01)
        return point, point, Y
    least, greatest = {
        "relu": (0.0, np.inf), "identity": (-np.inf, np.inf), "relu6": (0.0, 6.0),
        "hard_tanh": (-1.0, 1.0), "hard_sigmoid": (0.0, 1.0),
    }[name]  # fmt: skip
    point = (Y - 0.5) / (1 / 6) if name == "hard_sigmoid" else Y
    return (
        np.where(Y <= least, -np.inf, point), np.where(Y >= greatest, np.inf, point), Y
    )  # fmt: skip


# What weights reach --------------------------------------------------------------------------


@dataclass
class Measured:
    """Objective of some weights, by how much they miss the radius and hard rows, and the floor."""

    objective: float
    excess: float
    hard: float
    radius: float


def measure(group: Group, W: Array, b: Array) -> Measured:
    """Measure weights (N, m) and intercepts (m,).

    ``excess`` is the distance beyond the radius, relative to it, but for what the rounding of
    targets and products leaves; ``hard`` the largest excess of a hard row relative to its own
    scale: inputs times weights in size (centred, with an intercept), the intercept and the end of
    its box, but no more than the targets. A weight counts as a millionth of all at least, and
    those of an output without any as large as the targets.
    """
    X, W, b = group.X.astype(LONG), W.astype(LONG), b.astype(LONG)
    Z = X @ W + b
    k = np.clip(Z, group.lower, group.upper)
    E = Z - k
    sizes = np.abs(X) @ np.abs(W) + np.abs(b) + np.abs(k)
    distance = _norm(np.where(group.ball, E, 0))
    objective = np.sum(group.c * np.abs(W))
    hard = 0.0
    if not group.ball.all():
        centred = X - (X.mean(axis=0) if group.intercept else 0)
        unit = np.array([_norm(column) for column in centred.T])
        scales = np.abs(X.mean(axis=0) @ W + b if group.intercept else b) + np.abs(k)
        most = np.array([_norm(column) for column in np.clip(0.0, group.lower, group.upper).T])
        most = np.where(most > 0, most, _norm(most) / np.sqrt(len(most)))
        weights = np.array([_norm(w) for w in (W * unit[:, None]).T])
        least = np.where(weights > 1e-6 * most, 1e-6 * weights, most)
        sizes_w = np.maximum(np.abs(W), least / np.where(unit > 0, unit, np.inf)[:, None])
        scales = scales + np.abs(centred) @ sizes_w
        scales = np.where(most > 0, np.minimum(scales, most), scales)
        floor = 1e-17 * sizes  # what extended precision itself leaves
        shares = np.maximum(np.abs(E) - floor, 0) / np.where(scales > 0, scales, 1)
        hard = float(np.max(np.where(group.ball, 0, shares)))
    if group.penalised:
        return Measured(float(group.level * objective + distance**2 / 2), 0.0, hard, 1.0)
    targets = _norm(np.where(group.ball, np.clip(0.0, group.lower, group.upper), 0))
    floor = ROUNDING * float(max(targets, _norm(np.where(group.ball, sizes, 0))))
    radius = max(group.level, 1e-300)
    excess = max(float(distance) - group.level - floor, 0.0) / radius
    return Measured(float(objective), excess, hard, radius)


def _norm(values: Array) -> Any:
    size = np.abs(values).max(initial=0)
    return size * np.sqrt(np.sum((values / size) ** 2)) if size > 0 else LONG(0)


# What a dual point proves ----------------------------------------------------------------------


def bound(group: Group, theta: Array) -> float:
    """Return a lower bound on the group's optimal value that holds for any dual point."""
    if theta is None or not np.all(np.isfinite(theta)):
        return 0.0
    X = group.X.astype(LONG)
    size = float(np.abs(theta).max())
    if size == 0.0:
        return 0.0
    theta = theta.astype(LONG) / size
    theta[(theta > 0) & (group.upper == np.inf)] = 0
    theta[(theta < 0) & (group.lower == -np.inf)] = 0
    limit = group.c * (group.level if group.penalised else 1.0)
    ratios = np.zeros(theta.shape[1], dtype=LONG)
    for j in range(theta.shape[1]):
        if not _balance(group, X, theta, j):
            theta[:, j] = 0
        used = group.c[:, j] > 0
        slopes = np.abs(X.T @ theta[:, j])
        ratios[j] = np.max(slopes[used] / limit[used, j], initial=0)
    ends = np.where(theta > 0, group.upper, group.lower)
    support = np.sum(np.where(theta != 0, ends * theta, 0), axis=0)
    # Against the bound: a sum whose terms cancel has no sign.
    support += 1e-16 * np.sum(np.abs(np.where(theta != 0, ends * theta, 0)), axis=0)
    norms = np.array([_norm(column) for column in np.where(group.ball, theta, 0).T])
    if group.penalised:
        if norms[0] == 0:
            scale = 1 / ratios[0] if ratios[0] > 0 else LONG(0)
        else:
            scale = max(-support[0] / norms[0] ** 2, LONG(0))
            scale = min(scale, 1 / ratios[0]) if ratios[0] > 0 else scale
        return float(max(-scale * support[0] - (scale * norms[0]) ** 2 / 2, 0))
    if not ratios.max() > 0:
        return 0.0
    value = (-np.sum(support) - LONG(group.level) * _norm(norms)) / ratios.max()
    return float(max(value, 0))


def _balance(group: Group, X: Array, theta: Array, j: int) -> bool:
    """Make column j of theta orthogonal to the columns without penalty; return whether it is."""
    free = X[:, group.c[:, j] == 0]
    if group.intercept:
        free = np.column_stack([free, np.ones(len(X), dtype=LONG)])
    if free.shape[1] == 0:
        return True
    sizes = np.array([_norm(column) for column in free.T])
    free = free[:, sizes > 0] / sizes[sizes > 0]
    rows = np.isfinite(group.lower[:, j]) & np.isfinite(group.upper[:, j])
    for _ in range(4):
        left = free.T @ theta[:, j]
        if np.all(np.abs(left) <= 1e-16 * _norm(theta[:, j])):
            return True
        if not rows.any():
            return False
        change = np.linalg.lstsq(free[rows].T.astype(float), left.astype(float), rcond=1e-14)[0]
        theta[rows, j] -= change
    return bool(np.all(np.abs(free.T @ theta[:, j]) <= 1e-15 * _norm(theta[:, j])))


# The arbiter -----------------------------------------------------------------------------------


@dataclass
class Verdict:
    """Clarabel's answer to a group: its own status, weights, dual point."""

    solved: bool
    W: Array
    b: Array
    theta: Array


def arbitrate(group: Group, least: bool = False) -> Verdict:
    """Solve a group by Clarabel; with `least`, the least distance in place of the program."""
    import clarabel

    P, m = group.lower.shape
    mean = group.X.mean(axis=0) if group.intercept else np.zeros(group.X.shape[1])
    X = group.X - mean
    norm = np.array([float(_norm(column)) for column in X.T])
    norm[(norm == 0) | (norm < 1e-13 * np.abs(mean) * np.sqrt(P))] = np.inf
    X, dual_norm = X / norm, np.where(np.isfinite(norm), norm, 1.0)
    target = float(_norm(np.clip(0.0, group.lower, group.upper))) or 1.0
    c = np.where(np.isfinite(norm)[:, None], group.c / dual_norm[:, None], 0.0)
    c_size = float(c.max()) or 1.0
    level = group.level * c_size / target if group.penalised else group.level / target
    program = _Program(X, group, c / c_size, level, target, least)
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas"):
        setattr(settings, name, 1e-11)
    found = clarabel.DefaultSolver(*program.data(clarabel), settings).solve()
    V, beta, theta = program.read(np.array(found.x), np.array(found.z))
    W = V * target / norm[:, None]
    if least:
        c_size = 1.0
    solved = str(found.status) in ("Solved", "AlmostSolved")
    return Verdict(solved, W, beta * target - mean @ W, theta * c_size)


class _Program:
    """One group as a cone program: columns p, n >= 0 (or free), an intercept, errors e."""

    def __init__(
        self, X: Array, group: Group, c: Array, level: float, target: float, least: bool
    ) -> None:
        self.X, self.group, self.least = X, group, least
        P, m = group.lower.shape
        self.c = np.zeros_like(c) if least else c
        self.level = 1.0 if least else level
        self.quadratic = least or group.penalised
        self.lower, self.upper = group.lower / target, group.upper / target
        self.with_e = group.ball & ((self.lower == self.upper) | (not group.strict))
        if not self.quadratic and level == 0.0:
            self.with_e = np.zeros_like(self.with_e)
        self.N = X.shape[1]
        self.offset = int(group.intercept)
        self.width = 2 * self.N + self.offset
        self.first_e = m * self.width
        self.size = self.first_e + int(self.with_e.sum())
        self.places = np.full(self.with_e.shape, -1)
        self.places.T[self.with_e.T] = self.first_e + np.arange(self.size - self.first_e)

    def data(self, clarabel: Any) -> tuple[Any, ...]:
        """Return P, q, A, b and the cones."""
        m, q = self.lower.shape[1], np.zeros(self.size)
        matched = self.lower == self.upper
        blocks, right = [], []
        self.kinds: list[tuple[int, Array, float]] = []
        for which, sign in ((matched, 1.0), (~matched, 1.0), (~matched, -1.0)):
            for j in range(m):
                ends = self.upper[:, j] if sign > 0 else self.lower[:, j]
                rows = np.flatnonzero(which[:, j] & np.isfinite(ends))
                blocks.append(self._rows(j, rows, sign))
                right.append(sign * ends[rows])
                self.kinds.append((j, rows, sign))
        n_zero = sum(len(r) for r in right[:m])
        cones = [clarabel.ZeroConeT(n_zero)] if n_zero else []
        signs = []
        for j in range(m):
            start = j * self.width
            penalised = np.flatnonzero(self.c[:, j] > 0)
            q[start + penalised] = q[start + self.N + penalised] = self.c[penalised, j]
            signs.append(start + penalised)
            signs.append(start + self.N + penalised)
        places = np.concatenate(signs)
        blocks.append(sp.csc_array((-np.ones(len(places)), (np.arange(len(places)), places)),
                                   shape=(len(places), self.size)))  # fmt: skip
        right.append(np.zeros(len(places)))
        n_positive = sum(len(r) for r in right) - n_zero
        if n_positive:
            cones.append(clarabel.NonnegativeConeT(n_positive))
        P = sp.csc_array((self.size, self.size))
        n_e = self.size - self.first_e
        e = np.arange(self.first_e, self.size)
        if self.quadratic:
            P = sp.csc_array((np.full(n_e, 1.0 / self.level), (e, e)), shape=P.shape)
        elif n_e:
            blocks.append(sp.csc_array((-np.ones(n_e), (1 + np.arange(n_e), e)),
                                       shape=(n_e + 1, self.size)))  # fmt: skip
            right.append(np.append(self.level, np.zeros(n_e)))
            cones.append(clarabel.SecondOrderConeT(n_e + 1))
        A = sp.csc_matrix(sp.vstack(blocks))
        return sp.csc_matrix(P), q, A, np.concatenate(right), cones

    def _rows(self, j: int, rows: Array, sign: float) -> Any:
        block = np.zeros((len(rows), self.size))
        start = j * self.width
        block[:, start : start + self.N] = sign * self.X[rows]
        penalised = self.c[:, j] > 0
        block[:, start + self.N : start + 2 * self.N] = np.where(penalised, -sign * self.X[rows], 0)
        if self.offset:
            block[:, start + 2 * self.N] = sign
        places = self.places[rows, j]
        has = places >= 0
        block[np.flatnonzero(has), places[has]] = -sign
        return sp.csc_array(block)

    def read(self, x: Array, z: Array) -> tuple[Array, Array, Array]:
        """Return V, beta and theta."""
        m, N = self.lower.shape[1], self.N
        parts = x[: m * self.width].reshape(m, self.width)
        V = (parts[:, :N] - np.where(self.c.T > 0, parts[:, N : 2 * N], 0.0)).T
        beta = parts[:, 2 * N] if self.offset else np.zeros(m)
        theta, at = np.zeros(self.lower.shape), 0
        for j, rows, sign in self.kinds:
            theta[rows, j] += sign * z[at : at + len(rows)]
            at += len(rows)
        return V, beta, theta

r"""The search for a number of nonzeros with a convex solver: which penalty leaves so many.

The programs have no budget of weights, but the nonzeros fall as the penalty :math:`\lambda` of

.. math:: \min_W \; \lambda \sum c |W| + \tfrac12 \mathrm{dist}(X W, K)^2

grows, from all of them near 0 to none at :math:`\lambda_{max} = \max |x_i^T E(0)| / c_i`. So the
search looks along :math:`u = \log(\lambda / \lambda_{max})` for the count: a secant on the logit of
the density, within a bracket that the counts keep. It is over after a few solves, because the count
need not be hit. Close to the right penalty the surplus weights have only just left zero; they are
set back, and what is left is judged as an answer at the radius that it keeps,

.. math:: \min_W \; \sum c |W| \quad \text{s.t.} \quad \mathrm{dist}(X W, K) \le \epsilon,
   \qquad \epsilon = \mathrm{dist}(X \hat W, K),

with the dual point :math:`\theta = E / \lambda` of the penalised program. The gap is of second
order in the weights dropped, and the search ends as soon as the judge calls it closed.

A penalty shared by all outputs belongs to a joint radius. With one budget for every output each has
a penalty of its own, and all are searched at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..certificate import RADIUS_FLOOR, Certificate, certify, forward
from ..judging import judge
from ..problem import Problem
from ..solution import RawSolution, Solution
from ..status import Status
from .brackets import Ends, Part
from .options import Options
from .programs import Array, Index, Programs, input_sizes

Groups = NDArray[np.bool_]

#: Most solves of a search; the width of a bracket, in log penalty, that ends it; and how often an
#: answer near the budget may lack a proof before the best of them is taken.
SOLVES, WIDTH, ATTEMPTS = 40, 1e-5, 3

#: Bounds within which slopes of the logit of the density along log penalty are believed.
SLOPES = (-5.0, -0.03)

#: Shortest and longest step outside a bracket, and the part of a bracket that a step stays in.
STEPS, INSIDE = (0.0025, 3.0), 0.02

#: Distance, relative to the targets, below which more weights hardly matter: the search ends there
#: if the count is out of reach even with a slope CAUTION times as steep as the last one.
NEARLY, CAUTION = 0.01, 2.0

#: Steps in log penalty up to which the last pattern is a better start than none.
NEAR = 0.4

#: Violation of hard rows by a first answer that raises the question whether any weights keep them.
CONTRADICTED = 1e-3

#: Weights whose share of the pre-activations is below this part of tol_feas times the distance are
#: zeros.
DUST = 0.3

#: Surplus, relative to the budget, beyond which dropping it is not tried; and the one below which
#: an answer that its solver could not prove is as good as any.
SURPLUS, NEARBY = 0.05, 0.02

#: Part of the objective that the l1 norm is taken to be before the first answer.
SHARE = 0.1


class Search:
    """One search: the brackets, the answers at their ends, and those that are settled.

    Parameters
    ----------
    programs : Programs
    keep : ndarray of int, shape (G,)
        Nonzeros that each group may have.
    options : Options
    slope : float, optional
        Of the logit along log penalty, if known from similar programs.
    rough : float
        Share of the budget by which the count may miss it in either direction, where only the level
        is wanted: nothing is dropped or judged.
    """

    def __init__(
        self, programs: Programs, keep: Index, options: Options, slope: float | None = None,
        rough: float = 0.0,
    ) -> None:  # fmt: skip
        self.rough, self.slope = rough, slope
        self.programs, self.keep, self.options = programs, keep, options
        G = len(keep)
        #: Many nonzeros, few nonzeros, the best without proof, and the answers.
        self.dense, self.sparse, self.spare, self.settled = (Ends(G) for _ in range(4))
        self.open, self.short = np.ones(G, dtype=bool), np.zeros(G, dtype=bool)
        self.dropped, self.attempts = np.zeros((2, G), dtype=np.int64)
        #: Distance of the last answer relative to the targets.
        self.reached = np.full(G, np.inf)
        self.points: list[tuple[Array, Array]] = []
        self.widths: list[Array] = []
        self.iterations = np.zeros(len(programs.groups), dtype=np.int64)
        self.seconds: dict[str, float] = {}
        self.share = SHARE
        self.sizes = input_sizes(programs.problem)
        self.stop: Status | None = None
        self.last: Solution | None = None

    def run(self, u: Array, start: Solution | None) -> None:
        """Search from these log levels; `start` is for the first solve alone."""
        programs = self.programs
        try:
            for _ in range(SOLVES):
                u = np.clip(u, programs.bottom, programs.top)
                columns = self.columns(self.open)
                solution = self._solve(u, columns, start or self._start(u))
                self._sort(u, columns, solution)
                if self.stop is None:
                    self._end(u)
                if self.stop is not None or not self.open.any():
                    return
                u, start = self._next(u), None
        except KeyboardInterrupt:
            if self.last is None:
                raise
            self.stop = Status.INTERRUPTED

    def columns(self, groups: Groups) -> Index:
        """Return the outputs of some groups."""
        return np.flatnonzero(groups[self.programs.groups])

    # One solve --------------------------------------------------------------------------------

    def _solve(self, u: Array, columns: Index, start: Solution | None) -> Solution:
        options = self.options
        solution = options.solve(
            self.programs.at(u, columns), start, max(1e-10, options.tol_gap * self.share)
        )
        self.iterations[columns] += solution.iterations
        for name, seconds in solution.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        objective = solution.certificate.objective
        if self.programs.penalised and objective > 0:
            self.share = float(np.clip(0.5 * self._l1_share(solution.certificate), 1e-3, 1.0))
        unproved = solution.status in (Status.MAX_ITERATIONS, Status.UNPROVED)
        if (
            self.last is None
            and unproved
            and self.programs.penalised
            and self.programs.problem.strict
        ):
            if solution.certificate.violation > CONTRADICTED:
                solution = self._contradiction() or solution
        if options.expired() or solution.status is Status.TIME_LIMIT:
            self.stop = Status.TIME_LIMIT
        elif solution.status in (Status.INFEASIBLE, Status.FAILED, Status.INTERRUPTED):
            self.stop = solution.status
        return replace(
            solution,
            W=self._without_dust(columns, solution),
            theta=self._dual(u, columns, solution),
        )

    def _l1_share(self, certificate: Certificate) -> float:
        """Return the l1 part of the penalised objective, the least one of separate radii.

        At its own radius the answer has this part of the objective alone: there the same difference
        is a larger gap.
        """
        objectives, distances = certificate.objectives, certificate.distances
        if self.programs.per_output or self.programs.problem.radius == "per_output":
            objectives, distances = objectives[objectives > 0], distances[objectives > 0]
            empty = 0.5 * distances**2 >= (1.0 - 1e-9) * objectives
            shares = 1.0 - 0.5 * distances[~empty] ** 2 / objectives[~empty]
            return float(shares.min(initial=1.0))
        return 1.0 - 0.5 * float(np.sum(distances**2)) / float(np.sum(objectives))

    def _dual(self, u: Array, columns: Index, solution: Solution) -> Array | None:
        """Return the dual point ``E / lambda``: some solvers give E, whose scale the judge ignores.

        With a joint radius the outputs' scales relative to each other matter. One output tells.
        """
        theta = solution.theta
        if theta is None or not self.programs.penalised:
            return theta
        problem, far = self.programs.at(u, columns), int(np.argmax(solution.certificate.distances))
        one, b = problem.select([far]), solution.b
        Z = forward(one.X, solution.W[:, [far]], None if b is None else b[[far]])
        E = Z - np.clip(Z, *one.box())
        lambda_ = np.broadcast_to(np.asarray(problem.lambda_), len(columns))
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.log(np.sum(theta[:, far] * E[:, 0]) / np.sum(E**2))
        scaled = abs(size + np.log(lambda_[far])) <= abs(size)
        return theta if scaled or not np.isfinite(size) else theta / lambda_

    def _contradiction(self) -> Solution | None:
        """Return the proof that the hard rows contradict each other, if there is one.

        Solvers look for it where they are given a radius; any that costs nothing else will do.
        """
        problem = self.programs.problem
        found = self.options.solve(problem.within(problem.target_norms), None)
        unreachable = found.least_epsilon is not None and np.isinf(found.least_epsilon).any()
        return found if unreachable else None

    def _without_dust(self, columns: Index, solution: Solution) -> NDArray[Any]:
        """Return the weights without those that no tolerance can tell from zero.

        Interior-point methods, and vertices of hard rows, leave weights of 1e-8 that would count.
        """
        reached = np.maximum(
            solution.certificate.distances,
            RADIUS_FLOOR * self.programs.problem.target_norms[columns],
        )
        dust = np.abs(solution.W) * self.sizes[:, None] <= DUST * self.options.tol_feas * reached
        return np.where(dust & (self.programs.problem.penalty(columns) > 0), 0.0, solution.W)

    def _start(self, u: Array) -> Solution | None:
        """Return the nearer end of each open bracket, if near enough, to start from."""
        if self.last is None:
            return None
        groups = _indices(self.open)
        ends = np.array([np.abs(u - end.u)[groups] for end in (self.dense, self.sparse)])
        ends[np.isnan(ends)] = np.inf
        if np.mean(ends.min(axis=0) <= NEAR) < 0.5:
            return None
        sides = [(self.dense, self.sparse)[k] for k in ends.argmin(axis=0)]
        parts = [side.parts[g] for side, g in zip(sides, groups, strict=True)]
        whole = Part.join([part for part in parts if part is not None])
        return replace(
            self.last, W=whole.W, b=whole.b, theta=whole.theta, rho=whole.rho, multiplier=None
        )

    def _sort(self, u: Array, columns: Index, solution: Solution) -> None:
        """Put every answer where it belongs: settled, spare, or at an end of its bracket."""
        groups = _indices(self.open)
        members = [np.flatnonzero(self.programs.groups[columns] == g) for g in groups]
        nonzeros = np.count_nonzero(solution.W, axis=0)
        counts = [int(nonzeros[which].sum()) for which in members]
        first, self.last = self.last is None, solution
        if self.stop is not None and not first:
            return  # An answer cut short is better than none, but replaces nothing.
        logits = np.zeros(len(self.keep))
        logits[groups] = counts
        self.points.append((u.copy(), self._logit(logits)))
        norms = self.programs.problem.target_norms[columns]
        for g, which in zip(groups, members, strict=True):
            target = np.linalg.norm(norms[which])
            distance = np.linalg.norm(solution.certificate.distances[which])
            self.reached[g] = distance / target if target > 0 else 0.0
        parts = [Part.of(solution, which) for which in members]
        proved = [False] * len(groups) if self.stop else self._proved(groups, counts, parts)
        for g, count, part, done in zip(groups, counts, parts, proved, strict=True):
            surplus = count - self.keep[g]
            if done:
                self.settled.put(g, u[g], count, part)
                self._close(g, self.settled)
                continue
            # Where the count is met without a proof, more weights make the proof easier.
            end = self.dense if surplus > 0 else self.sparse
            end.put(g, u[g], count, part)
            unproved = any(stop is not Status.OPTIMAL for stop in part.stops)
            if surplus == 0 or (0 < surplus <= NEARBY * self.keep[g] and unproved):
                self.attempts[g] += 1
                if self.spare.parts[g] is None or count <= self.spare.count[g]:
                    self.spare.put(g, u[g], count, part)

    def _proved(self, groups: list[int], counts: list[int], parts: list[Part]) -> list[bool]:
        """Return which groups may end here, by the judge's word on what would be returned."""
        keep, found = self.keep[groups], np.array(counts)
        if self.rough:
            return list(np.abs(found - keep) <= np.maximum(self.rough * keep, 1))
        short = self.options.slack * keep
        tried = _indices((found >= keep - short) & (found - keep <= SURPLUS * keep + 1))
        proved = [False] * len(groups)
        if not tried:
            return proved
        chosen = np.zeros(len(self.keep), dtype=bool)
        chosen[[groups[k] for k in tried]] = True
        cut = [self.without_surplus(groups[k], parts[k]) for k in tried]
        solution = self.judged(self.columns(chosen), Part.join(cut))
        optimal = [status is Status.OPTIMAL for status in solution.statuses]
        for position, k in enumerate(tried):
            proved[k] = optimal[position] if self.programs.per_output else all(optimal)
        return proved

    def judged(self, columns: Index, part: Part, **more: Any) -> Solution:
        """Judge the answers of some outputs at the radii that they keep."""
        options, theta = self.options, part.theta
        problem = self.programs.own_radius(columns, part.W, part.b)
        if theta is not None:
            # Nothing is sparser than no weights at all; the bound 0 says it without rounding.
            empty = ~np.any((part.W != 0) & (problem.penalty() > 0), axis=0)
            theta = np.where(empty.all() if problem.joint else empty, 0.0, theta)
        raw = RawSolution(
            part.W, part.b, theta, list(part.stops), part.multiplier, part.rho, **more
        )
        solution = judge(problem, raw, options.solver, options.tol_gap, options.tol_feas)
        gaps = solution.certificate.gaps
        if problem.strict and np.any(gaps < -options.tol_gap):
            problem = _widened(problem, solution, options.tol_feas)
            solution = judge(problem, raw, options.solver, options.tol_gap, options.tol_feas)
        return solution

    def without_surplus(self, group: int, part: Part) -> Part:
        """Return an answer without its least weights beyond the budget of the group.

        The least in |w| times the size of the input: what dropping one costs the distance.
        """
        surplus = int(np.count_nonzero(part.W) - self.keep[group])
        if surplus <= 0:
            return part
        problem, W = self.programs.problem, np.array(part.W, order="C")
        columns = np.flatnonzero(self.programs.groups == group)
        size = np.abs(W) * self.sizes[:, None]
        fixed = np.broadcast_to(problem.penalty(columns) == 0, W.shape)
        size[fixed | (W == 0)] = np.inf
        W.flat[np.argsort(size, axis=None, kind="stable")[:surplus]] = 0.0
        return replace(part, W=W)

    # The end of a search ----------------------------------------------------------------------

    def _end(self, u: Array) -> None:
        """Close the groups for which no level is left that could serve better."""
        programs, dense, sparse = self.programs, self.dense, self.sparse
        with np.errstate(invalid="ignore"):
            narrow = sparse.u - dense.u <= max(self.rough, WIDTH)
        none_sparser = (u >= programs.top) & (dense.u == u)
        beyond, slopes = self._out_of_reach(u), self._slopes()
        if beyond.any() and slopes is not None:
            self.slope = float(np.median(slopes[beyond]))  # what led to this end
        none_denser = ((u <= programs.bottom) | beyond) & (sparse.u == u)
        for g in _indices(self.open):
            if none_denser[g]:
                self.short[g] = sparse.count[g] < self.keep[g]
                self._close(g, sparse)
            elif narrow[g] or none_sparser[g] or self.attempts[g] >= ATTEMPTS:
                self._close(g, self.spare if self.attempts[g] else dense)

    def _out_of_reach(self, u: Array) -> Groups:
        """Return the groups near their targets that need no more weights, as far as can be told."""
        slopes = self._slopes()
        if slopes is None or not self.programs.penalised:
            return np.zeros(len(u), dtype=bool)
        rise = CAUTION * slopes * (self.programs.bottom - u)
        near = self.reached <= (NEARLY if not self.rough else 0.75 * NEARLY)
        return near & np.isnan(self.dense.u) & (self.points[-1][1] + rise < self._goal())

    def close_rest(self) -> Groups:
        """Close the groups that are still open with the best at hand; return which these were."""
        left = self.open.copy()
        for g in _indices(left):
            keep, dense, sparse = self.keep[g], self.dense, self.sparse
            excess = dense.count[g] * max(sparse.count[g], 1) <= keep**2
            if self.spare.parts[g] is not None:
                self._close(g, self.spare)
            elif dense.parts[g] is not None and (sparse.parts[g] is None or excess):
                self._close(g, dense)
            else:
                self._close(g, sparse)
        return left

    def _close(self, group: int, end: Ends) -> None:
        part, count, u = end.parts[group], int(end.count[group]), float(end.u[group])
        assert part is not None
        if not self.rough:
            part = self.without_surplus(group, part)
            self.dropped[group] = max(count - self.keep[group], 0)
        self.settled.put(group, u, count, part)
        self.open[group] = False
        for other in (self.dense, self.sparse, self.spare):
            other.parts[group] = None

    # Where to look next -----------------------------------------------------------------------

    def _logit(self, count: Any) -> Array:
        return np.log((count + 0.5) / (self.programs.sizes - count + 0.5))

    def _goal(self) -> Array:
        """Return the logit to aim at: of a surplus that can be dropped and leaves a proof.

        Dropping a share s of the weights costs a gap of order s^3, but hard rows are violated at
        once, and in a small group even the least weight may be too large to drop.
        """
        surplus = 0.25 * self.options.tol_gap ** (1 / 3) * self.keep
        problem = self.programs.problem
        separate = 1 if self.programs.per_output or problem.radius == "joint" else problem.n_outputs
        useful = (surplus >= separate) & (not problem.strict) & (not self.rough)
        surplus = np.minimum(np.where(useful, surplus, 0.0), self.programs.sizes - self.keep)
        return self._logit(self.keep + surplus)

    def _slopes(self) -> Array | None:
        """Return the slope of the logit for every group; None where nothing is known yet."""
        if len(self.points) < 2:
            return None if self.slope is None else np.full(len(self.keep), self.slope)
        (u0, y0), (u1, y1) = self.points[-2:]
        with np.errstate(divide="ignore", invalid="ignore"):
            measured = (y1 - y0) / (u1 - u0)
        last = self._guessed_slopes() if self.slope is None else self.slope
        return np.where(np.isfinite(measured), np.clip(measured, *SLOPES), last)

    def _guessed_slopes(self) -> Array:
        return np.clip(self.programs.slope(self.keep), *SLOPES)

    def _next(self, u: Array) -> Array:
        """Return the next log level of every group: a secant step, kept inside the bracket."""
        low, high, goal = self.dense.u, self.sparse.u, self._goal()
        y1, slopes = self.points[-1][1], self._slopes()
        slope = self._guessed_slopes() if slopes is None else slopes
        step = goal - y1
        if len(self.points) > 1:
            y0 = self.points[-2][1]
            # Twice on the same side: look beyond the goal, so that the bracket closes there, too.
            step = np.where(~np.isnan(high - low) & ((goal - y0) * step > 0), 2.0 * step, step)
        step /= slope
        self.slope = float(np.median(slope[self.open]))
        way = np.where(np.isnan(high), 1.0, -1.0)
        shortest = min(STEPS[0] * 2.0 ** len(self.points), STEPS[1])
        free = u + way * np.clip(way * step, shortest, STEPS[1])
        width = high - low
        inside = (u + step > low + INSIDE * width) & (u + step < high - INSIDE * width)
        low_logit, high_logit = self._logit(self.dense.count), self._logit(self.sparse.count)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (goal - low_logit) / (high_logit - low_logit)
        share = np.clip(np.nan_to_num(share, nan=0.5), 0.1, 0.9)
        found = np.where(inside, u + step, low + width * share)
        self.widths.append(width)
        if len(self.widths) > 3:
            found = np.where(width > 0.5 * self.widths[-4], 0.5 * (low + high), found)
        return np.where(self.open, np.where(np.isnan(width), free, found), u)


def _widened(problem: Problem, solution: Solution, tol_feas: float) -> Problem:
    """Return the problem at the radius that makes up for hard rows violated within tolerance.

    Such a violation lets the l1 norm fall below the optimum at the radius kept. The bound is linear
    in the radius, so the one where the two agree, a little larger, is read from two judgements.
    """
    certificate, old = solution.certificate, np.atleast_1d(np.asarray(problem.epsilon))
    wider = old * (1.0 + tol_feas)
    there = certify(_with_radii(problem, wider), solution.W, solution.b, solution.theta)
    values = certificate.objectives
    if problem.joint:
        values = np.array([values.sum()])
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (certificate.bounds - values) / (certificate.bounds - there.bounds)
    part = np.clip(np.nan_to_num(part), 0.0, 1.0)
    return _with_radii(problem, old + part * (wider - old))


def _with_radii(problem: Problem, radii: Array) -> Problem:
    return problem.within(float(radii[0]) if problem.joint else radii)


def _indices(chosen: Groups) -> list[int]:
    return [int(index) for index in np.flatnonzero(chosen)]

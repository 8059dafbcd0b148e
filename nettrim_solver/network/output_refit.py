r"""Refit all layers of a pruned network together: to the output of the trained one, zeros kept.

Layers are pruned towards the trained layers' outputs, one after the other. Behind that the weights
that are left can be chosen anew for what counts in the end: with F the pruned network as a function
of its nonzero weights and intercepts v, T the trained network's output and :math:`v_0` the weights
that pruning left,

.. math:: \min_v \tfrac12 \|F(v) - T\|_F^2 + \tfrac{\delta}{2} \sum_l c_l \|v_l - v_{0l}\|^2,

with :math:`c_l` the mean over the weights of layer l of the diagonal of :math:`J^T J`, J the
Jacobian of F at the start. The diagonal is estimated by random signs s at the output:
:math:`\mathrm E\,(J^T s)^2` (Hutchinson). It scales the variables, too, for L-BFGS, which takes the
steps. Intercepts are hardly pulled. No labels take part, and softmax at the end is left out.

The pull and a small number of steps both keep the weights near those that pruning found: few
samples do not determine them.

References
----------
Nocedal, *Updating Quasi-Newton Matrices with Limited Storage*, Mathematics of Computation 35
(1980); Bekas, Kokiopoulou, Saad, *An Estimator for the Diagonal of a Matrix*, Applied Numerical
Mathematics 57 (2007).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_integer, check_number, check_time_limit
from ..exceptions import ProblemError
from ..status import Status
from ..threads import limit_threads
from .adjoint import check_differentiable, weight_gradients
from .calibration import Calibration, as_calibration
from .choices import matches
from .downstream import before_softmax
from .graph import Network, check_network
from .progress import Ended
from .recipe import Recipe

Array = NDArray[np.float64]

#: Takes the output for a batch and its number, and returns the gradient there.
Above = Callable[[Array, int], Array]

#: The pull towards the weights that pruning left, and steps of L-BFGS: chosen on LeNet-300-100 by
#: the output error on training images that took no part.
DAMPING, STEPS = 0.1, 40

#: Passes with random signs for the diagonal; the least pull, which intercepts have.
PROBES, LEAST = 4, 1e-6

#: Corrections that L-BFGS remembers.
MEMORY = 10


def refit_output(
    network: Network,
    pruned: Network,
    X: Any,
    *,
    steps: int = STEPS,
    damping: float = DAMPING,
    skip: str | Iterable[str] | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    n_threads: int | None = None,
) -> Network:
    r"""Choose the nonzero weights of all layers anew, so that the output nears the trained one's.

    Parameters
    ----------
    network : Network
        The trained network.
    pruned : Network
        Of the same operations, with zeros: ``result.network`` of :func:`.prune_network`, which does
        this by itself with ``output_refit=``.
    X : array_like, iterable or Calibration
        Inputs of the network, mostly those that it was pruned on.
    steps : int
        Of L-BFGS, at most.
    damping : float
        Pull towards the weights of `pruned`, relative to the mean curvature of each layer. The
        fewer samples, the more is good for others.
    skip : str or iterable of str, optional
        Names, patterns and kinds of layers that stay as they are.
    seed : int
        Of the random signs that measure the curvature.
    time_limit : float, optional
        Seconds; the best weights so far are returned.
    n_threads : int, optional
        As in :func:`solve`.

    Returns
    -------
    Network
        With the zeros of `pruned`, and an output error on X (before a last softmax) that is no
        larger. Also after Ctrl-C.

    Raises
    ------
    ProblemError, SettingsError
        For unusable arguments, or networks that differ in more than weights.
    UnsupportedError
        If the gradient of an operation behind a layer is not known: a part that a framework
        computes.

    Notes
    -----
    A step takes about one evaluation of the network and one walk back through it, three times the
    flops of an evaluation, in float64. In memory are all signals of one batch, the trained
    network's output on all samples, and about 25 arrays of the size of the nonzero weights.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Activate, Dense, Network, prune_network
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((20, 12)), np.zeros(12), name="hidden"), Activate("relu"),
    ...     Dense(rng.standard_normal((12, 3)), np.zeros(3), name="scores"),
    ... ])
    >>> X = rng.standard_normal((300, 20))
    >>> pruned = prune_network(network, X, sparsity=0.5, solver="alps").network
    >>> refitted = refit_output(network, pruned, X)
    >>> refitted.nnz == pruned.nnz
    True
    >>> def error(other):
    ...     return np.linalg.norm(other(X) - network(X))
    >>> bool(error(refitted) < 0.9 * error(pruned))
    True
    """
    for one in (network, pruned):
        check_network(one)
    original, other = network.folded(), pruned.folded()
    if [(op.name, type(op)) for op in original.operations] != [
        (op.name, type(op)) for op in other.operations
    ] or any(other.layer(one.name).W.shape != one.W.shape for one in original.layers):
        raise ProblemError(
            f"pruned must be network with other weights, but network has {original!r} and pruned "
            f"{other!r}: their operations differ"
        )
    keys = () if skip is None else Recipe(skip=skip).skip
    skipped = {layer.name for key in keys for layer in matches(original, "skip", key)}
    check_integer("steps", steps, 0)
    check_number("damping", damping, 0.0, np.inf, closed=True)
    check_integer("seed", seed, 0)
    check_time_limit(time_limit)
    data = as_calibration(X, original, None, "X")
    fit = OutputFit(
        original, other, data, [one.name for one in original.layers if one.name not in skipped],
        damping=damping, seed=seed,
    )  # fmt: skip
    deadline = None if time_limit is None else time.perf_counter() + time_limit

    def check() -> None:
        if deadline is not None and time.perf_counter() >= deadline:
            raise Ended(Status.TIME_LIMIT)

    with limit_threads(n_threads):
        fit.run(steps, check)
    return fit.network


class OutputFit:
    """The weights of some layers, fitted together to the trained network's output.

    Parameters
    ----------
    original, pruned : Network
        Without batch normalisations that could be folded.
    data : Calibration
    names : iterable of str
        The layers to be fitted.
    damping : float
    seed : int

    Raises
    ------
    UnsupportedError
        See :func:`.check_differentiable`.

    Attributes
    ----------
    network : Network
        `pruned` with the best weights so far, in its own dtype.
    """

    def __init__(
        self, original: Network, pruned: Network, data: Calibration, names: Iterable[str], *,
        damping: float = DAMPING, seed: int = 0,
    ) -> None:  # fmt: skip
        self.original, self.pruned, self.data = original, pruned, data
        self.names, self.damping, self.seed = tuple(names), damping, seed
        self.end = before_softmax(original)
        self.start = pruned.astype(np.float64)
        self.masks = {name: pruned.layer(name).W != 0 for name in self.names}
        #: Variables: nonzero weights and intercepts, layer by layer.
        self.sizes: list[int] = []
        for name, mask in self.masks.items():
            n_outputs = pruned.layer(name).n_outputs
            self.sizes += [int(mask.sum()), n_outputs if self._has_intercept(name) else 0]
        self.network = pruned
        check_differentiable(original, self.names, self.end)

    def run(self, steps: int, check: Callable[[], object]) -> Status | None:
        """Take steps; return why they ended early, None if they did not.

        Parameters
        ----------
        steps : int
        check : callable
            Called before each pass over the samples; may raise Ended.
        """
        try:
            if self.names and steps:
                self._descend(steps, check)
        except Ended as end:
            return end.status
        except KeyboardInterrupt:
            return Status.INTERRUPTED
        except OverflowError:
            pass  # What was found before stays.
        return None

    def _descend(self, steps: int, check: Callable[[], object]) -> None:
        from scipy.optimize import minimize  # slow to load

        trained = self.original.astype(np.float64)
        targets = [trained.outputs(X, [self.end])[self.end] for X in self.data.batches()]
        scale = sum(float(np.vdot(T, T)) for T in targets) or 1.0
        units, pull = self._units(check)

        def objective(v: Array) -> tuple[float, Array]:
            check()
            residuals = _Residuals(targets)
            gradient = self._gradient(self._moved(v / units), residuals) / units + pull * v
            if not (np.isfinite(residuals.loss) and np.isfinite(gradient).all()):
                raise OverflowError("the output of a trial step is beyond float64")
            return (residuals.loss + 0.5 * float(pull @ v**2)) / scale, gradient / scale

        def keep(v: Array) -> None:
            self.network = self.pruned.replace(self._moved(v / units))

        minimize(
            objective, np.zeros(len(units)), jac=True, method="L-BFGS-B", callback=keep,
            options={"maxiter": steps, "maxcor": MEMORY, "ftol": 0.0, "gtol": 0.0},
        )  # fmt: skip

    def _units(self, check: Callable[[], object]) -> tuple[Array, Array]:
        """Return what changes are multiplied with to become variables, and the pull on these."""
        rng = np.random.default_rng(self.seed)
        diagonal = np.zeros(sum(self.sizes))
        for _ in range(PROBES):
            check()
            signs = self._gradient({}, lambda Z, _: rng.choice((-1.0, 1.0), size=Z.shape))
            diagonal += signs**2 / PROBES
        squares, pulls = [], []
        for part, is_weights in zip(self._split(diagonal), cycle((True, False))):
            level = float(part.mean()) if part.size else 0.0
            if not level > 0:  # Nothing moves the output: the changes stay zero.
                squares.append(np.ones_like(part))
                pulls.append(np.zeros_like(part))
            elif is_weights:
                squares.append(part + max(self.damping, LEAST) * level)
                pulls.append(self.damping * level / squares[-1])
            else:
                squares.append(np.full_like(part, level))
                pulls.append(np.full_like(part, LEAST))
        return np.sqrt(np.concatenate(squares)), np.concatenate(pulls)

    def _gradient(self, changes: Mapping[str, Any], above: Above) -> Array:
        """Return the gradient with respect to all variables, summed over the samples.

        Parameters
        ----------
        changes : mapping
            The weights, for :meth:`.Network.replace` of the start.
        above : callable
            Called with the output for each batch and its number; returns the gradient there.
        """
        network, total = self.start.replace(changes), np.zeros(sum(self.sizes))
        for number, X in enumerate(self.data.batches()):
            steps = [*network.signals(X, until=self.end)]
            gradient = above(steps[-1][2], number)
            found = weight_gradients(network, steps, gradient, self.names)
            parts: list[Array] = []
            for name in self.names:
                W, b = found[name]
                parts += [W[self.masks[name]], b if self._has_intercept(name) else b[:0]]
            total += np.concatenate(parts)
        return total

    def _moved(self, change: Array) -> dict[str, tuple[Array, Array | None]]:
        """Return the weights of the start with changes of all variables."""
        parts, moved = iter(self._split(change)), {}
        for name in self.names:
            layer = self.start.layer(name)
            W, own, shift = layer.W.copy(), next(parts), next(parts)
            W[self.masks[name]] += own
            moved[name] = W, None if layer.b is None else layer.b + shift
        return moved

    def _split(self, values: Array) -> list[Array]:
        """Return the parts of weights and intercepts, layer by layer."""
        return np.split(values, np.cumsum(self.sizes)[:-1])

    def _has_intercept(self, name: str) -> bool:
        return self.start.layer(name).b is not None


class _Residuals:
    """What the output misses its targets by, batch by batch; adds up half the squares."""

    def __init__(self, targets: list[Array]) -> None:
        self.targets, self.loss = targets, 0.0

    def __call__(self, output: Array, number: int) -> Array:
        residual = output - self.targets[number]
        self.loss += 0.5 * float(np.vdot(residual, residual))
        return residual

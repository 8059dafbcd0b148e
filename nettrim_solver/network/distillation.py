r"""Fine-tune a pruned network to the output of the trained one, on mixtures of the samples.

With F the pruned network as a function of its nonzero weights and intercepts v, and T the trained
one, both before a last softmax,

.. math:: \min_v \mathrm E_{x} \|F_v(x) - T(x)\|^2.

That needs no labels, so x need not be a sample: the expectation is over mixtures
``x = a x_i + (1 - a) x_j`` of two samples, of which there are far more than samples. They keep a
network with more weights than samples from fitting these alone. The steps are those of Adam on
small batches, at a rate that is proportional to the size of each layer's weights and to the error
at the start: where pruning changed little, little is changed.

References
----------
Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531;
Zhang, Cisse, Dauphin, Lopez-Paz, *mixup*, ICLR 2018, arXiv:1710.09412; Beyer, Zhai, Royer,
Markeeva, Anil, Kolesnikov, *Knowledge Distillation: A Good Teacher Is Patient and Consistent*, CVPR
2022, arXiv:2106.05237; Kingma, Ba, *Adam*, ICLR 2015, arXiv:1412.6980.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checks import check_integer, check_number
from ..exceptions import ProblemError
from ..status import Status
from ..threads import limit_threads
from .calibration import Calibration
from .downstream import before_softmax
from .graph import Network
from .progress import Ended
from .trainable import Trainable

Array = NDArray[np.float32]

#: Decays of Adam's means of gradients and of their squares; few steps ask for a short memory.
DECAY, SQUARE_DECAY, TINY = 0.9, 0.99, 1e-12

#: Fraction of the steps in which the rate rises, and what is left of it at the end.
WARM_UP, LAST_RATE = 0.05, 0.02

#: Flops of a product below which several threads are of no use.
SMALL_PRODUCT = 2e8

#: Largest rate relative to the weights: steps of a tenth of them diverge in convolutions.
LARGEST_RATE = 0.04


@dataclass(frozen=True)
class DistillationSettings:
    """How a pruned network is fine-tuned to the trained one's output.

    Attributes
    ----------
    epochs : int
        Passes over the samples.
    batch_size : int
    rate : float
        Of Adam, in units of each layer's root mean square weight times the relative error of the
        output at the start (its root, at most 1).
    mixing : float
        Of the Beta distribution that mixtures are drawn from; 0 takes the samples themselves.
    """

    epochs: int = 120
    batch_size: int = 100
    rate: float = 0.3
    mixing: float = 1.0

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        check_integer("epochs", self.epochs, 0)
        check_integer("batch_size", self.batch_size, 1)
        for name in ("rate", "mixing"):
            check_number(name, getattr(self, name), 0.0, np.inf, closed=True)


class Distillation:
    """The nonzero weights of some layers, fine-tuned together to the trained network's output.

    Parameters
    ----------
    original, pruned : Network
        Of the same operations, without batch normalisations that could be folded.
    data : Calibration
    names : iterable of str
        The layers to be fitted.
    settings : DistillationSettings
    seed : int
        Of the order of the samples and of the mixtures.

    Raises
    ------
    UnsupportedError
        See :func:`.check_differentiable`.

    Attributes
    ----------
    network : Network
        `pruned` with the latest weights, in its own dtype; or as it is, if they err no less.
    error : float
        Squared error of the output of `pruned` on the samples, relative to the output.
    """

    def __init__(
        self, original: Network, pruned: Network, data: Calibration, names: Iterable[str],
        settings: DistillationSettings | None = None, *, seed: int = 0,
    ) -> None:  # fmt: skip
        self.pruned, self.network, self.names = pruned, pruned, tuple(names)
        self.settings = settings or DistillationSettings()
        self.settings.validate()
        end = before_softmax(original)
        self.teacher = Trainable(original, end)
        self.student = Trainable(pruned, end, self.names)
        self.X = np.concatenate(
            [original.prepare(batch).astype(np.float32) for batch in data.batches()]
        )
        self.rng = np.random.default_rng(seed)
        self.targets = targets = self.teacher(self.X, data.batch_size)
        self.scale = float(np.mean(np.square(targets, dtype=np.float64))) * targets[0].size
        self.batch_size = data.batch_size
        self.error = self._error()
        if not np.isfinite(self.error):
            raise ProblemError("the outputs of both networks must be within float32 on the samples")

    def run(self, check: Callable[[float], object] = lambda share: None) -> Status | None:
        """Take all steps; return why they ended early, None if they did not.

        Parameters
        ----------
        check : callable
            Called before each step with the share of the steps taken; may raise Ended.
        """
        steps = self.settings.epochs * -(-len(self.X) // self.settings.batch_size)
        if not (self.names and steps and self.error > 0):
            return None
        try:
            with limit_threads(self._threads()), np.errstate(over="ignore", invalid="ignore"):
                self._descend(steps, check)
        except Ended as end:
            status: Status | None = end.status
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        else:
            status = None
        with np.errstate(over="ignore", invalid="ignore"):
            if self._error() < self.error:
                self.network = self.pruned.replace(self.student.pruned(self.names))
        return status

    def _threads(self) -> int | None:
        """Return one thread for small products, which a busy BLAS pool slows; else no limit."""
        largest = max(self.pruned.layer(name).W.size for name in self.names)
        return 1 if 2 * self.settings.batch_size * largest < SMALL_PRODUCT else None

    def _error(self) -> float:
        """Return the squared error of the output on the samples, relative to the output."""
        residual = self.student(self.X, self.batch_size) - self.targets
        total = float(np.mean(np.square(residual, dtype=np.float64))) * self.targets[0].size
        return total / self.scale if self.scale else 0.0

    def _descend(self, steps: int, check: Callable[[float], object]) -> None:
        adam = Adam(self.student, min(LARGEST_RATE, self.settings.rate * self.error**0.5))
        order = np.empty(0, dtype=np.intp)
        for step in range(steps):
            check(step / steps)
            if not len(order):
                order = self.rng.permutation(len(self.X))
            chosen, order = np.split(order, [self.settings.batch_size])
            X = self.X[chosen]
            if self.settings.mixing:
                X = self._mixed(X)
                targets = self.teacher.forward(X)[self.teacher.end]
            else:
                targets = self.targets[chosen]
            signals = self.student.forward(X)
            residual = signals[self.student.end] - targets
            above = np.float32(2.0 / (self.scale * len(X))) * residual
            adam.step(self.student.backward(signals, above), schedule(step, steps))

    def _mixed(self, X: Array) -> Array:
        """Return mixtures of samples with others."""
        share = self.rng.beta(self.settings.mixing, self.settings.mixing, size=len(X))
        share = np.maximum(share, 1.0 - share).astype(np.float32)
        share = share.reshape(-1, *[1] * (X.ndim - 1))
        others = self.X[self.rng.integers(0, len(self.X), len(X))]
        return share * X + (1 - share) * others


class Adam:
    """Steps of Adam on the nonzero weights and the intercepts of layers, in place.

    Parameters
    ----------
    network : Trainable
    rate : float
        In units of the root mean square of each layer's nonzero weights.
    """

    def __init__(self, network: Trainable, rate: float) -> None:
        self.taken = 0
        #: Of each vector of variables: itself, its rate, and the means of Adam.
        self.states: dict[tuple[str, int], tuple[Array, np.float32, Array, Array]] = {}
        for name, weights in network.weights.items():
            size = float(np.sqrt(np.mean(weights**2))) if len(weights) else 0.0
            for place, values in enumerate((weights, network.b.get(name))):
                if values is not None:
                    means = np.zeros_like(values), np.zeros_like(values)
                    self.states[name, place] = values, np.float32(rate * size), *means

    def step(self, gradients: dict[str, tuple[Array, Array]], share: float) -> None:
        """Take one step, at a share of the rate."""
        self.taken += 1
        mean_part, square_part = (1 - decay**self.taken for decay in (DECAY, SQUARE_DECAY))
        for (name, place), (values, rate, mean, square) in self.states.items():
            if name not in gradients:  # The output does not depend on this layer.
                continue
            gradient = gradients[name][place]
            mean += np.float32(1 - DECAY) * (gradient - mean)
            square += np.float32(1 - SQUARE_DECAY) * (gradient**2 - square)
            root = np.sqrt(square / np.float32(square_part)) + np.float32(TINY)
            values -= np.float32(share / mean_part) * rate * mean / root


def schedule(step: int, steps: int) -> float:
    """Return the share of the rate: a short rise, then half a cosine down to the last rate."""
    rise = min(1.0, (step + 1) / (WARM_UP * steps + 1))
    return rise * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + float(np.cos(np.pi * step / steps))))

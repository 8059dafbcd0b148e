r"""Fine-tune a pruned network to the output of the trained one, on mixtures of the samples.

With F the pruned network as a function of its nonzero weights and intercepts v, and T the trained
one, both before a last softmax,

.. math:: \min_v \mathrm E_{x} \left[ \frac{\|F_v(x) - T(x)\|^2}{\mathrm E\|T\|^2}
          + \beta \tau^2\, \mathrm{KL}\big(\sigma(T(x) / \tau)\, \|\, \sigma(F_v(x) / \tau)\big)
          \right],

the second term only where the output is a distribution over classes. Neither needs labels, so x
need not be a sample: the expectation is over mixtures ``x = a x_i + (1 - a) x_j`` of two samples,
of which there are far more than samples. That keeps a network with more weights than samples from
fitting these alone. The steps are those of Adam on small batches, with a rate that is proportional
to the size of each layer's weights and to what the network misses at the start: where pruning
changed little, little is changed.

References
----------
Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531;
Zhang, Cisse, Dauphin, Lopez-Paz, *mixup*, ICLR 2018, arXiv:1710.09412; Beyer, Zhai, Royer, Markeeva,
Anil, Kolesnikov, *Knowledge Distillation: A Good Teacher Is Patient and Consistent*, CVPR 2022,
arXiv:2106.05237; Kingma, Ba, *Adam*, ICLR 2015, arXiv:1412.6980.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checks import check_integer, check_number
from ..exceptions import ProblemError
from ..status import Status
from .calibration import Calibration
from .downstream import before_softmax
from .graph import Network
from .operations import Softmax
from .progress import Ended
from .trainable import Trainable

Array = NDArray[np.float32]

#: Decays of Adam's means of gradients and of their squares; few steps ask for a short memory.
DECAY, SQUARE_DECAY, TINY = 0.9, 0.99, 1e-12

#: Fraction of the steps in which the rate rises, and what is left of it at the end.
WARM_UP, LAST_RATE = 0.05, 0.02


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
    classes : float
        Weight beta of the divergence, for networks that end in a softmax or are said to classify.
    temperature : float
        What outputs are divided by in the divergence.
    """

    epochs: int = 120
    batch_size: int = 100
    rate: float = 0.3
    mixing: float = 1.0
    classes: float = 0.1
    temperature: float = 2.0

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        check_integer("epochs", self.epochs, 0)
        check_integer("batch_size", self.batch_size, 1)
        for name in ("rate", "mixing", "classes"):
            check_number(name, getattr(self, name), 0.0, np.inf, closed=True)
        check_number("temperature", self.temperature, 0.0, np.inf)


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
    classifier : bool or None
        Whether the outputs are scores of classes; None where a last softmax says so.
    seed : int
        Of the order of the samples and of the mixtures.

    Raises
    ------
    UnsupportedError
        See :func:`.check_differentiable`.

    Attributes
    ----------
    network : Network
        `pruned` with the latest weights, in its own dtype.
    error : float
        Squared error of the output of `pruned` on the samples, relative to the output.
    """

    def __init__(
        self, original: Network, pruned: Network, data: Calibration, names: Iterable[str],
        settings: DistillationSettings | None = None, *, classifier: bool | None = None,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.pruned, self.network, self.names = pruned, pruned, tuple(names)
        self.settings = settings or DistillationSettings()
        self.settings.validate()
        end = before_softmax(original)
        self.classifier = ends_in_softmax(original) if classifier is None else classifier
        self.teacher = Trainable(original, end)
        self.student = Trainable(pruned, end, self.names)
        self.X = np.concatenate(
            [original.prepare(batch).astype(np.float32) for batch in data.batches()]
        )
        self.rng = np.random.default_rng(seed)
        self.kept = {name: np.flatnonzero(pruned.layer(name).W) for name in self.names}
        targets = self.teacher(self.X, data.batch_size)
        residual = self.student(self.X, data.batch_size) - targets
        self.scale = float(np.mean(np.square(targets, dtype=np.float64))) * targets[0].size
        total = float(np.mean(np.square(residual, dtype=np.float64))) * targets[0].size
        if not np.isfinite(total + self.scale):
            raise ProblemError("the outputs of both networks must be within float32 on the samples")
        self.error = total / self.scale if self.scale else 0.0

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
            with np.errstate(over="ignore", invalid="ignore"):
                self._descend(steps, check)
        except Ended as end:
            status: Status | None = end.status
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        else:
            status = None
        weights = {n: (self.student.W[n], self.student.b.get(n)) for n in self.names}
        if all(
            np.isfinite(part).all()
            for pair in weights.values()
            for part in pair
            if part is not None
        ):
            self.network = self.pruned.replace(weights)
        return status

    def _descend(self, steps: int, check: Callable[[float], object]) -> None:
        adam = Adam(self.student, self.kept, self.settings.rate * min(1.0, self.error**0.5))
        order = np.empty(0, dtype=np.intp)
        for step in range(steps):
            check(step / steps)
            if not len(order):
                order = self.rng.permutation(len(self.X))
            chosen, order = np.split(order, [self.settings.batch_size])
            X = self._mixed(chosen)
            targets = self.teacher.forward(X).signals[self.teacher.end]
            tape = self.student.forward(X)
            above = self._above(tape.signals[self.student.end], targets)
            adam.step(self.student.backward(tape, above), schedule(step, steps))

    def _mixed(self, chosen: NDArray[np.intp]) -> Array:
        """Return mixtures of chosen samples with others."""
        X = self.X[chosen]
        if not self.settings.mixing:
            return X
        share = self.rng.beta(self.settings.mixing, self.settings.mixing, size=len(X))
        share = np.maximum(share, 1.0 - share).astype(np.float32)
        share = share.reshape(-1, *[1] * (X.ndim - 1))
        others = self.X[self.rng.integers(0, len(self.X), len(X))]
        return share * X + (1 - share) * others

    def _above(self, outputs: Array, targets: Array) -> Array:
        """Return the gradient of the mean loss with respect to the outputs."""
        found = np.float32(2.0 / self.scale) * (outputs - targets)
        if self.classifier and self.settings.classes:
            tau = np.float32(self.settings.temperature)
            difference = _softmax(outputs / tau) - _softmax(targets / tau)
            found += np.float32(self.settings.classes) * tau * difference
        return found / np.float32(len(outputs))


class Adam:
    """Steps of Adam on the nonzero weights and the intercepts of layers, in place.

    Parameters
    ----------
    network : Trainable
        Its W and b are changed.
    kept : dict of str to ndarray of int
        Flat indices of the nonzero weights.
    rate : float
        In units of the root mean square of each layer's nonzero weights.
    """

    def __init__(
        self, network: Trainable, kept: dict[str, NDArray[np.intp]], rate: float
    ) -> None:  # fmt: skip
        self.network, self.kept, self.taken = network, kept, 0
        self.values, self.rates, self.means, self.squares = {}, {}, {}, {}
        for name, places in kept.items():
            own = network.W[name].ravel()[places]
            size = float(np.sqrt(np.mean(own**2))) if len(own) else 0.0
            for key, values in ((name, own), (f"{name} b", network.b.get(name))):
                if values is not None:
                    self.values[key], self.rates[key] = values, np.float32(rate * size)
                    self.means[key] = np.zeros_like(values)
                    self.squares[key] = np.zeros_like(values)

    def step(self, gradients: dict[str, tuple[Array, Array]], share: float) -> None:
        """Take one step, at a share of the rate."""
        self.taken += 1
        for name, places in self.kept.items():
            of_W, of_b = gradients[name]
            self.network.W[name].reshape(-1)[places] = self._moved(
                name, of_W.reshape(-1)[places], share
            )
            if name in self.network.b:
                self.network.b[name] = self._moved(f"{name} b", of_b, share)

    def _moved(self, key: str, gradient: Array, share: float) -> Array:
        mean, square = self.means[key], self.squares[key]
        mean += np.float32(1 - DECAY) * (gradient - mean)
        square += np.float32(1 - SQUARE_DECAY) * (gradient**2 - square)
        rate = share * self.rates[key] / (1 - DECAY**self.taken)
        root = np.sqrt(square / np.float32(1 - SQUARE_DECAY**self.taken))
        self.values[key] -= np.float32(rate) * mean / (root + np.float32(TINY))
        return self.values[key]


def schedule(step: int, steps: int) -> float:
    """Return the share of the rate: a short rise, then half a cosine down to the last rate."""
    rise = min(1.0, (step + 1) / (WARM_UP * steps + 1))
    return rise * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + float(np.cos(np.pi * step / steps))))


def ends_in_softmax(network: Network) -> bool:
    """Return whether the network's output is that of a softmax."""
    return isinstance(network[before_softmax(network)], Softmax) or any(
        isinstance(op, Softmax) for op in network.operations[-2:]
    )


def _softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)

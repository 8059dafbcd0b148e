r"""Weights for the errors of a layer's outputs, by how far each moves the network's output.

A change d of the output j of a layer moves the network's output by about :math:`J_j d`. The errors
of a layer's outputs cost the network the least together where each counts by

.. math:: s_j^2 = \mathrm{E}\, \|J_j\|^2,

with the mean over samples, and over the positions of a convolution their sum. It is measured by
finite differences: a channel gets a disturbance of one size and random sign at every position,
and the squared changes at the network's output are averaged. Random signs make the mixed terms
vanish in the mean.

The network is the trained one, or one that was pruned before. Layers that are pruned listen to a
part of the outputs only, and the others need not be good.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration, draw
from .choices import LayerSettings
from .graph import BATCH_SIZE, Network
from .operations import Activate, Dropout, Operation, Softmax
from .wiring import INPUT

#: Samples that a channel is disturbed on, the size of the disturbance relative to the signal, and
#: the least weight relative to the largest: an output that moves nothing may not cost nothing.
SAMPLES, STEP, LEAST = 128, 1e-2, 1e-3


def output_weights(
    network: Network, name: str, data: Calibration, settings: LayerSettings, seed: int = 0
) -> NDArray[np.float64] | None:
    """Return what the errors of a layer's outputs count by its settings; None if all the same."""
    chosen = settings.output_weights
    if isinstance(chosen, Network):
        return downstream_weights(chosen.folded(), name, data, seed)
    return None if chosen == "equal" else downstream_weights(network, name, data, seed)


def downstream_weights(
    network: Network, name: str, data: Calibration, seed: int = 0
) -> NDArray[np.float64]:
    """Return how far the network's output moves with each output of a layer.

    Parameters
    ----------
    network : Network
        The trained network, or a pruned one: outputs that its later layers do not use get small
        weights.
    name : str
        The layer. Its outputs are perturbed after the activation that follows it.
    data : Calibration
        Samples are drawn from all of it.
    seed : int
        Seed of the samples and the signs.

    Returns
    -------
    ndarray of float64, shape (n_outputs,)
        With a mean square of 1; all 1 for the last layer, up to a softmax, and where nothing moves.

    Notes
    -----
    For n outputs the part of the network after the layer is evaluated on 128 n samples. The data
    are read once.
    """
    layer, end = network.layer(name), before_softmax(network)
    place = _behind_activation(network, name)
    before = network.ancestors(end) | {end}
    path = [
        op for op in network.operations if op.name in before and place in network.ancestors(op.name)
    ]
    if not path:
        return np.ones(layer.n_outputs)
    sources = {source for op in path for source in op.inputs} - {op.name for op in path}
    X = draw(data, SAMPLES, seed)
    signals = network.outputs(X, sources | {end, place})
    step = STEP * float(np.sqrt(np.mean(np.square(signals[place], dtype=np.float64))))
    if step == 0:
        return np.ones(layer.n_outputs)
    rng = np.random.default_rng(seed)
    squares = np.empty(layer.n_outputs)
    channels_at_once = max(1, BATCH_SIZE // len(X))
    for first in range(0, layer.n_outputs, channels_at_once):
        channels = range(first, min(first + channels_at_once, layer.n_outputs))
        for channel, change in zip(
            channels, _changes(path, place, signals, channels, step, rng), strict=True
        ):
            squares[channel] = np.sum(np.square(change, dtype=np.float64))
    weights = np.sqrt(squares)
    if not weights.max() > 0:
        return np.ones(layer.n_outputs)
    weights = np.maximum(weights, LEAST * weights.max())
    return weights / np.sqrt(np.mean(weights**2))


def _changes(
    path: list[Operation], place: str, signals: dict[str, NDArray[np.floating]], channels: range,
    step: float, rng: np.random.Generator,
) -> Iterator[NDArray[np.floating]]:  # fmt: skip
    """Yield the changes at the end of the path for a disturbance of each channel."""
    n, copies = len(signals[place]), len(channels)

    def repeated(signal: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.tile(signal, (copies, *[1] * (signal.ndim - 1)))

    disturbed = repeated(signals[place])
    for copy, channel in enumerate(channels):
        part = disturbed[copy * n : (copy + 1) * n, channel]
        part += step * rng.choice((-1.0, 1.0), size=part.shape).astype(part.dtype)
    live = {place: disturbed}
    for op in path:
        inputs = [
            live[source] if source in live else repeated(signals[source]) for source in op.inputs
        ]
        live[op.name] = op.apply(*inputs)
    output = live[path[-1].name]
    for copy in range(copies):
        yield output[copy * n : (copy + 1) * n] - signals[path[-1].name]


def _behind_activation(network: Network, name: str) -> str:
    """Return the name of the output of the activation that alone takes a layer's output."""
    users = network.consumers(name)
    if len(users) == 1 and isinstance(users[0], (Activate, Dropout)):
        return _behind_activation(network, users[0].name)
    return name


def before_softmax(network: Network) -> str:
    """Return the name of the network's output, or of what its last softmax takes."""
    last: Operation = network.output
    while isinstance(last, (Softmax, Dropout)) and last.inputs[0] != INPUT:
        last = network[last.inputs[0]]
    return last.name

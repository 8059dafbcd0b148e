"""Refit all layers of a pruned network together: to the output of the trained one, zeros kept."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ..checks import check_integer, check_time_limit
from ..exceptions import ProblemError
from ..status import Status
from ..threads import limit_threads
from .calibration import Calibration, as_calibration
from .choices import matches
from .distillation import Distillation, DistillationSettings
from .graph import Network, check_network
from .progress import Ended
from .recipe import Recipe

#: Epochs that are usual for dense networks, and for those with convolutions, where a sample has
#: many rows.
EPOCHS, CONVOLUTION_EPOCHS = 120, 30


def usual_epochs(network: Network) -> int:
    """Return the epochs of the refit of a network, unless told otherwise."""
    return CONVOLUTION_EPOCHS if is_convolutional(network) else EPOCHS


def is_convolutional(network: Network) -> bool:
    """Return whether a layer of the network is a convolution."""
    return any(layer.kind == "conv2d" for layer in network.layers)


def refit_settings(network: Network, epochs: int) -> DistillationSettings:
    """Return the settings of the refit of a network.

    Mixtures of samples serve dense networks. A sample of a convolution has many rows as it is, and
    whole numbers cannot be mixed.
    """
    whole = any(op.takes_integers for op in network.operations)
    mixing = 0.0 if whole or is_convolutional(network) else 1.0
    return DistillationSettings(epochs=epochs, mixing=mixing)


def refit_output(
    network: Network,
    pruned: Network,
    X: Any,
    *,
    epochs: int | None = None,
    skip: str | Iterable[str] | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    n_threads: int | None = None,
) -> Network:
    r"""Re-optimise all nonzero weights so that the output approaches that of the trained network.

    Parameters
    ----------
    network : Network
        The trained network.
    pruned : Network
        Of the same operations, with zeros: ``result.network`` of :func:`.prune_network`, which does
        this by itself with ``output_refit=``.
    X : array_like, iterable or Calibration
        Inputs of the network, mostly those that it was pruned on.
    epochs : int, optional
        Passes over the samples; by default 120, and 30 for networks with convolutions.
    skip : str or iterable of str, optional
        Names, patterns and kinds of layers that stay as they are.
    seed : int
        Of the order of the samples and of their mixtures.
    time_limit : float, optional
        Seconds; the weights so far are returned.
    n_threads : int, optional
        As in :func:`solve`.

    Returns
    -------
    Network
        With the zeros of `pruned`. Also after Ctrl-C.

    Raises
    ------
    ProblemError, SettingsError
        For unusable arguments, or networks that differ in more than weights.
    UnsupportedError
        If the gradient of an operation after a layer is not known: a part that a framework
        computes.

    Notes
    -----
    The objective and the method are those of :mod:`.distillation`. An epoch takes about one
    evaluation of both networks and one walk back through the pruned one, in float32. All samples
    are in memory.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Recipe
    >>> from nettrim_solver.network import Activate, Dense, Network, prune_network
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((20, 12)), np.zeros(12), name="hidden"), Activate("relu"),
    ...     Dense(rng.standard_normal((12, 3)), np.zeros(3), name="scores"),
    ... ])
    >>> X = rng.standard_normal((300, 20))
    >>> pruned = prune_network(network, X, sparsity=0.5, recipe=Recipe(steps="alps")).network
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
    if epochs is not None:
        check_integer("epochs", epochs, 0)
    check_integer("seed", seed, 0)
    check_time_limit(time_limit)
    data = as_calibration(X, original, None, "X")
    with limit_threads(n_threads):
        return _refitted(original, other, data, skipped, epochs, seed, time_limit)


def _refitted(
    original: Network, pruned: Network, data: Calibration, skipped: set[str], epochs: int | None,
    seed: int, time_limit: float | None,
) -> Network:  # fmt: skip
    if epochs is None:
        epochs = usual_epochs(original)
    names = [one.name for one in original.layers if one.name not in skipped]
    fit = Distillation(original, pruned, data, names, refit_settings(original, epochs), seed=seed)
    deadline = None if time_limit is None else time.perf_counter() + time_limit

    def check(share: float) -> None:
        if deadline is not None and time.perf_counter() >= deadline:
            raise Ended(Status.TIME_LIMIT)

    fit.run(check)
    return fit.network

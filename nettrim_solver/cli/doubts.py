"""Doubts about data: samples that look unlike those the network was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..network import Activate, Network
from .data import Score

#: Samples that are looked at.
ENOUGH = 200

#: What counts as saturated: this near to the ends of the range.
SATURATED = 0.999

#: The accuracy of a trained network is doubtful below this many times that of guessing.
CHANCE = 1.3

#: Samples with larger entries may want scaling.
LARGE = 10.0


def doubts(
    network: Network, X: NDArray[Any], score: Score | None, trained: float | None
) -> Iterator[str]:
    """Yield what is odd about the calibration samples, and what may help.

    Parameters
    ----------
    network : Network
    X : ndarray of shape (n_samples, ...)
    score : Score or None
    trained : float or None
        What it says of the trained network.
    """
    some = np.asarray(X[:ENOUGH])
    low, high = float(some.min()), float(some.max())
    remedy = f"the samples run from {low:.3g} to {high:.3g}"
    if max(-low, high) > LARGE:
        remedy += "; if the network was trained on pixels divided by 255, give --scale 1/255"
    if score is not None and trained is not None and score.kind == "accuracy":
        n_classes = max(2, int(score.y.max()) + 1)
        if trained < CHANCE / n_classes:
            yield (
                f"the trained network has accuracy {score.shown(trained)} on the validation "
                f"samples, about that of guessing among {n_classes} classes: {remedy}"
            )
    for op, _, output in network.signals(some):
        if not isinstance(op, Activate):
            continue
        size = np.abs(2.0 * output - 1.0 if op.kind == "sigmoid" else output)
        if op.kind == "relu" and not output.any():
            yield f"all outputs of {op.name} are zero on the calibration samples: {remedy}"
        elif op.kind in ("tanh", "sigmoid") and np.all(size > SATURATED):
            yield f"all outputs of {op.name} are saturated on the calibration samples: {remedy}"

"""Prototype of the default recipes: `best` and `fast`. To become part of `prune_network`.

Stages
1. candidates: splits of the budget over the layers by their shapes (exponents 0.4 and 0.8, no cost)
   and, in "best" with convolutions, by the output error of layers pruned alone at few densities.
2. drafts: the cascade by ALPS with each split, on four of five samples; the split whose network has
   the least output error on the others is taken. A single layer, or one candidate, needs none.
3. draft: the cascade by ALPS with that split, on all samples.
4. l0 ("best" only): the cascade by l0 towards the box, outputs weighted by what they move at the
   draft's output.
5. distillation of all layers together to the trained network's output, on mixtures of the samples
   (dense layers only); left out where a part has no known gradient.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nettrim_solver.exceptions import UnsupportedError
from nettrim_solver.network import Conv2d, Network, prune_network
from nettrim_solver.network.allocation import ENOUGH, MOST_LAYERS, allocate, split
from nettrim_solver.network.calibration import Calibration, as_calibration
from nettrim_solver.network.distillation import Distillation, DistillationSettings
from nettrim_solver.network.measure import measure
from nettrim_solver.network.spreading import spread_by_shape
from nettrim_solver.pipeline import L0, Pipeline

#: Passes over the samples, of which a convolution makes many rows: no mixtures are needed there.
EPOCHS, EPOCHS_OF_CONVOLUTIONS = 120, 30


@dataclass(frozen=True)
class Plan:
    """Settings of the stages; None leaves a stage out."""

    exponents: tuple[float, ...] = (0.4, 0.8)
    measured: bool = True
    l0: dict[str, Any] | None = field(default_factory=lambda: {"damping": 1e-3, "rounds": 4})
    distil: DistillationSettings | None = field(default_factory=DistillationSettings)
    epochs: tuple[int, int] = (EPOCHS, EPOCHS_OF_CONVOLUTIONS)


BEST = Plan()
FAST = Plan(measured=False, l0=None, epochs=(60, 15))


def choose_split(
    network: Network, data: Calibration, total: int, plan: Plan, seed: int
) -> dict[str, int]:
    """Return the split whose draft errs least on held-out samples."""
    layers = {layer.name: layer for layer in network.layers}
    found = [spread_by_shape(layers, total, exponent) for exponent in plan.exponents]
    if len(data) < ENOUGH or len(layers) == 1:
        return found[-1]
    rest, held = split(data)
    # Weights of convolutions are used at many positions, which shapes do not show.
    if plan.measured and len(layers) <= MOST_LAYERS and has_convolutions(network):
        found.append(
            allocate(network, rest, X_heldout=held, nnz=total, weigh=False, seed=seed, n_threads=1)
        )
    if len(found) == 1:
        return found[0]
    errors = []
    for nnz in found:
        draft = prune_network(network, rest, nnz=nnz, solver="alps", n_threads=1, seed=seed).network
        errors.append(measure(network, draft, held, alone=False).relative_output())
    return found[int(np.argmin(errors))]


def has_convolutions(network: Network) -> bool:
    """Return whether any layer is a convolution."""
    return any(isinstance(layer, Conv2d) for layer in network.layers)


def prune(
    network: Network, X: Any, *, sparsity: float, plan: Plan = BEST, classifier: bool | None = None,
    seed: int = 0, log: Any = None,
) -> Network:  # fmt: skip
    """Prune a network to a sparsity by the stages of a plan; see the module."""
    network = network.folded()
    tick = time.process_time()

    def say(what: str, pruned: Network | None = None) -> None:
        nonlocal tick
        if log is not None:
            log(what, time.process_time() - tick, pruned)
        tick = time.process_time()

    data = as_calibration(X, network, None, "X")
    total = network.n_weights - round(sparsity * network.n_weights)
    nnz = choose_split(network, data, total, plan, seed)
    say(f"split {nnz}")
    draft = prune_network(network, X, nnz=nnz, solver="alps", n_threads=1, seed=seed).network
    say("draft", draft)
    pruned = draft
    if plan.l0 is not None:
        pruned = prune_network(
            network,
            X,
            nnz=nnz,
            pipeline=Pipeline(L0(settings=plan.l0)),
            output_weights=draft,
            n_threads=1,
            seed=seed,
        ).network
        say("l0", pruned)
    if plan.distil is not None:
        try:
            convolutional = has_convolutions(network)
            settings = replace(plan.distil, epochs=plan.epochs[convolutional])
            if convolutional:
                settings = replace(settings, mixing=0.0)
            fit = Distillation(
                network,
                pruned,
                data,
                [layer.name for layer in network.layers],
                settings,
                classifier=classifier,
                seed=seed,
            )
        except UnsupportedError:
            return pruned
        fit.run()
        pruned = fit.network
        say("distil", pruned)
    return pruned

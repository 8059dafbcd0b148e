"""Accuracy of networks on test samples with Gaussian noise, the same noise for every network."""

from __future__ import annotations

from typing import Any

import numpy as np

from nettrim_solver.network import Network

from .datasets import Classifier

#: Standard deviations of the noise; pixels lie in [0, 1].
SIGMAS = (0.1, 0.2, 0.3, 0.5)


class NoisySamples:
    """Test samples with noise that is drawn once, for every strength of it.

    Parameters
    ----------
    data : Classifier
    draws : int
        Independent draws that accuracies are averaged over.
    seed : int
    """

    def __init__(self, data: Classifier, draws: int = 2, seed: int = 2018) -> None:
        rng = np.random.default_rng(seed)
        self.clean = np.asarray(data.X_test, np.float32)
        self.labels = data.y_test
        self.noise = [rng.standard_normal(self.clean.shape, dtype=np.float32) for _ in range(draws)]

    def accuracies(self, network: Network) -> dict[str, float]:
        """Return the mean accuracy of a network by the standard deviation of the noise.

        The noisy samples are not cut off at the range of the clean ones.
        """
        single = network.astype(np.float32)
        return {
            f"{sigma:g}": float(np.mean([self._accuracy(single, sigma, z) for z in self.noise]))
            for sigma in SIGMAS
        }

    def _accuracy(self, network: Network, sigma: float, noise: Any) -> float:
        answers = network(self.clean + np.float32(sigma) * noise, 4096).argmax(axis=1)
        return float(np.mean(answers == self.labels))

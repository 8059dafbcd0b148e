r"""How many calibration samples a layer needs: a law checked by experiments, and a theorem.

A ReLU output pins its weights down on samples where it is active; where it is not, it says next to
nothing. With Gaussian inputs the active half of P samples are P/2 equations like those of
compressed sensing, so s-sparse weights among N come back from about twice as many samples as the
statistical dimension :math:`\delta(N, s)` (:func:`statistical_dimension`) counts:

- ``"fit"``: :math:`P = 2 \delta + b\, \Phi^{-1}(p) \sqrt{2 \delta}` for probability p, with the
  spread b measured by ``python -m benchmarks sample_complexity``, result file
  ``benchmarks/results/sample_complexity.json``;
- ``"theorem"``: with :math:`P = (11 s + 7)\, \mu \log N` Gaussian samples the probability is at
  least :math:`1 - N^{1 - \mu}`.

Both speak of exact recovery of weights that *are* sparse, from outputs without noise. A trained
layer is neither, so take the number as the scale below which samples are surely too few.

References
----------
Aghasi, Abdi, Nguyen, Romberg, *Net-Trim*, NIPS 2017 (arXiv:1611.05162), Theorem 3.
Amelunxen, Lotz, McCoy, Tropp, *Living on the edge*, Information and Inference 2014
(arXiv:1303.6672).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from scipy.special import ndtr, ndtri

from .checks import check_choice, check_integer, check_number
from .exceptions import SettingsError

#: The spread b by kind of inputs (independent entries of mean 0 and variance 1), measured for
#: N = 100 to 1000 and s = 0.01 N to 0.4 N: benchmarks/results/sample_complexity.json.
SPREADS: Mapping[str, float] = MappingProxyType(
    {"gaussian": 1.56, "rademacher": 1.45, "uniform": 1.52}
)

METHODS = ("fit", "theorem")

#: Probabilities that the fit covers; beyond them it would extrapolate.
LOWEST, HIGHEST = 0.5, 0.99


def required_samples(
    n_inputs: int,
    nnz: int,
    *,
    probability: float = 0.95,
    method: str = "fit",
    inputs: str = "gaussian",
) -> int:
    r"""Return the number of samples that determine an output's weights, with a probability.

    Parameters
    ----------
    n_inputs : int
        Inputs of the layer (N).
    nnz : int
        Nonzero weights of one output (s), at most `n_inputs`.
    probability : float
        Of exact recovery: in [0.5, 0.99] for the fit, in (0, 1) for the theorem.
    method : {"fit", "theorem"}
        The theorem's number is a guarantee, and several times larger.
    inputs : {"gaussian", "rademacher", "uniform"}
        Whose measured spread the fit takes (``SPREADS``). The theorem is about Gaussian inputs.

    Returns
    -------
    int

    Raises
    ------
    SettingsError
        For any argument outside its range.

    Notes
    -----
    A neuron that is active on a fraction a of the samples, not half, needs about 1 / (2 a) times as
    many. Real hidden signals are correlated and need more; see the documentation for how much.

    Examples
    --------
    >>> required_samples(784, 50, probability=0.5)
    380
    >>> required_samples(784, 50, method="theorem")
    5381
    """
    check_integer("n_inputs", n_inputs, 1)
    check_integer("nnz", nnz, 1)
    if nnz > n_inputs:
        raise SettingsError(f"nnz must be at most n_inputs ({n_inputs}), but was {nnz}")
    check_choice("method", method, METHODS)
    check_choice("inputs", inputs, tuple(SPREADS))
    check_number("probability", probability, 0.0, 1.0)
    if method == "theorem":
        # mu log N = log(N / (1 - probability))
        return int(np.ceil((11 * nnz + 7) * (np.log(n_inputs) - np.log1p(-probability))))
    if not LOWEST <= probability <= HIGHEST:
        raise SettingsError(
            f"probability must lie in [{LOWEST}, {HIGHEST}] for method 'fit', "
            f"but was {probability!r}"
        )
    middle = 2.0 * statistical_dimension(n_inputs, nnz)
    return int(np.ceil(middle + SPREADS[inputs] * ndtri(probability) * np.sqrt(middle)))


def statistical_dimension(n_inputs: int, nnz: int) -> float:
    r"""Return how many Gaussian equations determine sparse weights of least l1 norm, on average.

    The statistical dimension of the l1 norm's descent cone at s-sparse weights, up to its error
    bound of :math:`2 / \sqrt{N s}` relative to N:

    .. math::

        \delta(N, s) = \min_{\tau \ge 0}\; s (1 + \tau^2) + (N - s)\, E (|g| - \tau)_+^2

    Parameters
    ----------
    n_inputs, nnz : int
        N and s, 1 <= s <= N.

    Returns
    -------
    float
        Between s and N.

    References
    ----------
    Amelunxen, Lotz, McCoy, Tropp, *Living on the edge*, 2014, Proposition 4.5.

    Examples
    --------
    >>> round(statistical_dimension(1000, 100)), round(statistical_dimension(50, 50))
    (329, 50)
    """
    tau = np.linspace(0.0, 8.0, 8001)
    density = np.exp(-(tau**2) / 2) / np.sqrt(2 * np.pi)
    excess = 2 * ((1 + tau**2) * ndtr(-tau) - tau * density)
    return float(np.min(nnz * (1 + tau**2) + (n_inputs - nnz) * excess))

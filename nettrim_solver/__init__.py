"""Prune trained networks layer by layer, with a proof of optimality.

The layer floor is three names: a :class:`Problem`, :func:`solve`, and the :class:`Solution` with
its certificate. See the documentation for the mathematics and for how to choose a solver.
"""

from . import activations, exceptions, instances
from .budget import solve_for_epsilon, solve_for_nnz, solve_for_sparsity
from .certificate import Certificate, certify
from .compare import compare
from .comparison import Comparison
from .exceptions import NettrimError
from .problem import Problem
from .refine import refit, swaps
from .reweighting import Round, reweight, reweighting_rounds
from .solution import Solution
from .solve import solve
from .solvers import Progress, available_solvers
from .status import Status

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "Comparison",
    "Factorisation",
    "NettrimError",
    "Network",
    "Problem",
    "Progress",
    "Round",
    "Solution",
    "Status",
    "activations",
    "available_solvers",
    "certify",
    "compare",
    "exceptions",
    "instances",
    "prune_network",
    "refit",
    "reweight",
    "reweighting_rounds",
    "solve",
    "solve_for_epsilon",
    "solve_for_nnz",
    "solve_for_sparsity",
    "swaps",
]


def __getattr__(name: str) -> object:
    if name == "Factorisation":
        from .solvers.admm.factorisation import Factorisation

        return Factorisation
    if name in ("Network", "prune_network"):
        from . import network

        return getattr(network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

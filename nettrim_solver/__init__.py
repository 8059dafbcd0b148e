"""Prune trained networks layer by layer, with a proof of optimality.

The layer floor is three names: a :class:`Problem`, :func:`solve`, and the :class:`Solution` with
its certificate. See the documentation for the mathematics and for how to choose a solver.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import activations, exceptions, instances
from .certificate import Certificate, certify
from .compare import compare
from .exceptions import NettrimError
from .problem import Problem
from .solution import Solution
from .solve import solve
from .solvers import Progress, available_solvers
from .status import Status

if TYPE_CHECKING:
    from .comparison import Comparison
    from .network import Network, Recipe, prune_network
    from .refine import refit, swaps
    from .reweighting import Round, reweight, reweighting_rounds
    from .solvers.admm.factorisation import Factorisation

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "Comparison",
    "Factorisation",
    "NettrimError",
    "Network",
    "Problem",
    "Progress",
    "Recipe",
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
    "swaps",
]


#: Names that are imported on first use, so that the package itself is imported quickly.
_LATER = {
    ".comparison": ("Comparison",),
    ".network": ("Network", "Recipe", "prune_network"),
    ".refine": ("refit", "swaps"),
    ".reweighting": ("Round", "reweight", "reweighting_rounds"),
    ".solvers.admm.factorisation": ("Factorisation",),
}

#: Names of earlier versions, and what to write instead.
_REPLACED = {
    "solve_for_epsilon": "solve(problem.replace(epsilon=...), solver)",
    "solve_for_nnz": "solve(problem, solver, nnz=...)",
    "solve_for_sparsity": "solve(problem, solver, sparsity=...)",
}


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(module, __name__), name)
    hint = f"; use {_REPLACED[name]}" if name in _REPLACED else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

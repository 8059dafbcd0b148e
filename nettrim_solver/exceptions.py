"""Every error that the package raises on purpose; no backend's exception passes through."""


class NettrimError(Exception):
    """Base class of all errors raised by nettrim_solver."""


class ProblemError(NettrimError, ValueError):
    """An argument of a problem is unusable; the message says what it was and must be."""


class ProblemFileError(ProblemError):
    """A file is not a readable problem (missing, truncated, pickled, or of another format)."""


class SettingsError(NettrimError, ValueError):
    """An unknown solver, an unknown setting, or a setting outside its range."""


class UnsupportedError(NettrimError, ValueError):
    """The solver cannot do what the problem asks for; the message names the solvers that can."""


class MissingDependencyError(NettrimError, ImportError):
    """An optional package is not installed; the message says which extra brings it."""


class SolverError(NettrimError, RuntimeError):
    """A backend failed, or ``raise_on_failure=True`` met an answer without proof.

    Attributes
    ----------
    solution : Solution or None
        The best answer at hand, when there is one.
    """

    def __init__(self, message: str, solution: object = None) -> None:
        super().__init__(message)
        self.solution = solution


class InfeasibleError(SolverError):
    """No weights reach the radius; raised only with ``raise_on_failure=True``."""

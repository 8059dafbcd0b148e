"""What a solver may say of an answer, with the remedy beside it."""

from enum import Enum


class Status(Enum):
    """Outcome of a solve, for one output or for the whole layer.

    The value is the short name that files and tables use; :attr:`message` says what it means and
    :attr:`remedy` what to do about it. Only the certificate sets ``OPTIMAL`` and ``INFEASIBLE``.
    """

    OPTIMAL = (
        "optimal",
        "the duality gap and the violation, recomputed from the data, are within tolerance",
        "",
    )
    FEASIBLE = (
        "feasible",
        "the weights keep the radius, but nothing proves that they are the sparsest in l1 norm",
        "use a convex solver such as 'admm' if you need the proof",
    )
    PRUNED = (
        "pruned",
        "the budget of weights is met; the radius is not kept, or the problem has none",
        "read the error in solution.certificate; for a bound on it, give the problem a radius and "
        "the solver no budget",
    )
    UNPROVED = (
        "unproved",
        "the solver stopped by its own rule, but the certificate does not confirm its answer",
        "tighten the solver's own tolerance, or use solver='admm'",
    )
    INFEASIBLE = (
        "infeasible",
        "no weights reach the radius: a dual ray proves it",
        "raise epsilon above least_epsilon, or use the pooled formulation",
    )
    MAX_ITERATIONS = (
        "max_iterations",
        "the iteration limit came before the proof",
        "raise max_iter, or loosen tol_gap",
    )
    TIME_LIMIT = (
        "time_limit",
        "the time limit came before the proof",
        "raise time_limit, or loosen tol_gap",
    )
    INTERRUPTED = (
        "interrupted",
        "stopped by Ctrl-C or by the callback; this is the best answer so far",
        "solve again with warm_start=solution to go on",
    )
    FAILED = (
        "failed",
        "the backend gave no usable answer",
        "read solution.warnings, or use solver='admm'",
    )

    def __init__(self, label: str, message: str, remedy: str) -> None:
        self.label = label
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.label


SEVERITY = (
    Status.OPTIMAL,
    Status.FEASIBLE,
    Status.PRUNED,
    Status.UNPROVED,
    Status.MAX_ITERATIONS,
    Status.TIME_LIMIT,
    Status.INTERRUPTED,
    Status.FAILED,
    Status.INFEASIBLE,
)


def worst(statuses: "list[Status] | tuple[Status, ...]") -> Status:
    """Return the most severe of several outcomes (a layer is as good as its worst output)."""
    return max(statuses, key=SEVERITY.index)

"""What a solver may say of an answer, with the remedy beside it."""

from enum import StrEnum


class Status(StrEnum):
    """Outcome of a solve, for one output or for the whole layer.

    A member is a string, the word that files and tables use, and equals it: both
    ``solution.status == "optimal"`` and ``solution.status is Status.OPTIMAL`` work, and
    ``Status("optimal")`` finds the member. Only the certificate sets ``OPTIMAL`` and
    ``INFEASIBLE``. :func:`worst` orders outcomes by severity; ``<`` compares the words.

    Attributes
    ----------
    label : str
        The word itself.
    message : str
        What it means.
    remedy : str
        What to do about it; empty for ``OPTIMAL``.

    Examples
    --------
    >>> Status.TIME_LIMIT == "time_limit"
    True
    >>> Status("time_limit").remedy
    'raise time_limit, or loosen tol_gap'
    """

    label: str
    message: str
    remedy: str

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

    def __new__(cls, label: str, message: str, remedy: str) -> "Status":
        """Make the member that equals `label`."""
        member = str.__new__(cls, label)
        member._value_ = member.label = label
        member.message, member.remedy = message, remedy
        return member


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

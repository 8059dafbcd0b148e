"""Every tolerance that a test compares with, and why it is what it is."""

TOLERANCE = {
    # f(f^-1(y)) in float64: a division and a product, each within one rounding of y.
    "preimage": 1e-14,
    # Difference quotients on a grid of step 1e-4: rounding of f (2e-16 times |f| <= 40), divided
    # by the step.
    "lipschitz_rounding": 1e-10,
    # A Lipschitz constant looser than this would loosen every activation bound for nothing.
    "lipschitz_slack": 1e-3,
    # f^-1(f(z)) for the invertible activations of slope 0.01 and more.
    "own_box": 1e-12,
    # Ends of ranges that are written to five digits.
    "range_end": 1e-4,
    # Norms summed in another order than numpy.linalg.norm does.
    "norm": 1e-13,
    # Default tol_gap and tol_feas of float64 problems.
    "proved": 1e-6,
    # Samples whose two largest float32 scores may change places with the BLAS in use.
    "argmax_ties": 1,
    # Gap and violation of planted answers: sums of some hundred products that may cancel.
    "planted": 1e-8,
    # Clarabel's own optimum at its tolerance of 1e-10, times the conditioning of small problems.
    "reference_optimum": 1e-8,
    # Two references at their own tolerances; each of them is proved to 1e-6.
    "references_agree": 1e-6,
    # The same numbers of the judge from another order of summation.
    "reordered": 1e-11,
    # Least radii from exact rays: one least-squares solve in float64.
    "least_radius": 1e-9,
    # The published ADMM at its own stop, where it stops by its rule: it promises nothing better.
    "published_stop": 1e-2,
    # Lambda is read from a dual norm, and the penalised solution moves smoothly with it.
    "multiplier": 1e-5,
    # X^T theta of planted problems, after one step of refinement.
    "planted_dual": 1e-12,
}

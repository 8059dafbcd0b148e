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
    # Weights of planted answers proved to a gap of 1e-9: the gap grows with the square of the
    # distance along flat directions, whose curvature is near 1 in these instances.
    "planted_weights": 1e-6,
    # Optimality conditions of answers proved to a gap of 1e-10, whose square root this is.
    "kkt": 1e-5,
    # Lasso coefficients at scikit-learn's duality gap of 1e-12, whose square root this is.
    "lasso": 1e-6,
    # Weights behind a radius of 1e-7 of the targets, times the conditioning of a Gaussian layer.
    "given_back": 1e-5,
    # The same weights by two ways, each proved to a gap of 1e-9; conditioning as above.
    "same_answer": 1e-6,
    # An output's weights with and without its neighbours: the same proof to 1e-6, reached by
    # products that the BLAS sums in another order; the weights then differ by rounding alone.
    "independent_outputs": 1e-7,
    # Weights proved to a gap of 1e-5 and rounded to float32; conditioning as above.
    "single_precision": 1e-4,
    # A dozen roundings each, in float32 and float64, relative to the size of the terms.
    "kernel_single": 3e-6,
    "kernel_double": 1e-14,
    # Projections of a few dozen entries of size 1 to 10.
    "projection": 1e-12,
    # Squared distances of a dozen rows of size 5, at the resolution of a golden-section search.
    "best_constant": 1e-9,
    # Newton's method on one smooth scalar equation, to the last bits.
    "joint_multiplier": 1e-12,
    # Linear systems with condition numbers below 1 / KAPPA = 500, and inverses formed from them.
    "factorisation": 1e-10,
    # The same with float32 inverses and products.
    "single_projection": 1e-3,
    # How far three iterations may lead away from an optimum proved to a gap of 1e-11.
    "fixed_point": 1e-5,
    # Gap and violation of 3000 iterations without the polish.
    "plain_admm": 1e-4,
    # Peak of the working memory relative to the limit: the limit counts the arrays with an entry
    # per sample; those with an entry per input come on top.
    "memory": 1.1,
    # Losses and weights by recursions and Cholesky factors of H against lstsq on the samples,
    # relative to the targets: rounding times condition numbers of H up to about 1e5.
    "removals": 1e-8,
    # Weights of a few inputs by normal equations against lstsq: rounding times the square of
    # condition numbers up to about 1e3.
    "refit": 1e-8,
    # Slopes at a box refit, relative to norms of X and targets: Newton's last step in float64.
    "box_slope": 1e-9,
    # Outputs of small networks by another formula, relative to their largest entry: a few layers of
    # some hundred products each. Frameworks in single precision are promised to 1e-5.
    "network_double": 1e-12,
    "network_single": 1e-5,
    # Tableaus of up to nine inputs against inverses: rounding times condition numbers of H up to
    # about 1e6, relative to their largest terms.
    "tableau": 1e-7,
    # Outputs without dead neurons, promised to 1e-6: constants are summed in another order, and
    # rounded to float32 once more in single precision.
    "dead_neurons": 1e-6,
    # Errors of two convex answers with as many nonzeros: a range of penalties leaves that count,
    # and a search from another start ends elsewhere in it.
    "same_count": 5e-2,
    # Weights of linear programs by HiGHS at its feasibility tolerance of 1e-7, times the
    # conditioning of a few dozen columns.
    "linear_program": 1e-5,
    # A mean of four thousand squared distances of relative spread one third.
    "monte_carlo": 2e-2,
    # Shares of trials with the planned samples, over some 3000 trials: noise near 1e-2, and a law
    # of one constant.
    "planned_share": 5e-2,
    # Finite differences of linear maps in float64: rounding over a step of 1e-2.
    "downstream_linear": 1e-10,
    # Weights by the same program in other units: proved to 1e-6, or least squares on one support.
    "downstream_units": 1e-5,
    # Outputs of float32 modules and their recorded networks, of size about one: kernels of PyTorch
    # and numpy sum in other orders.
    "recorded": 1e-5,
    # Weights of the same small float64 layers, from inputs that differ in their last digits.
    "recorded_64": 1e-10,
    # Slopes by central differences with a step of 1e-6 in float64, relative to the largest
    # possible: rounding over the step, and the activations' own numerical derivatives.
    "gradient": 1e-7,
    # Outputs of the same descent whose sums over samples are in another order: rounding that forty
    # steps have blown up.
    "refit_batches": 1e-6,
    # A descent of up to 500 steps against the minimum of a quadratic: it stops at rounding.
    "least_squares_descent": 1e-6,
}

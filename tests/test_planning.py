"""The time that a plan says: pieces of layers, pruned as the layers will be."""

import numpy as np
import pytest

from nettrim_solver import solve
from nettrim_solver.activations import PReLU
from nettrim_solver.network import Activate, Conv2d, Dense, Flatten, Network, planning
from nettrim_solver.network.calibration import Calibration, draw
from nettrim_solver.pipeline import L0, Pipeline, Reweight

from .helpers import planned

RNG = np.random.default_rng(8)
X = RNG.standard_normal((400, 200))
WIDE = Network([Dense(RNG.standard_normal((200, 160)) / 15, np.zeros(160), name="wide")])


def test_pieces_are_like_the_layer_and_no_larger():
    seen = []

    def pipeline(problem, nnz=None, **call):
        seen.append((*problem.X.shape, problem.n_outputs, nnz))
        return solve(problem, "magnitude", nnz=nnz)

    plan = planned(WIDE, X, nnz=3200, steps=pipeline)
    assert plan.seconds > 0
    rows, inputs, outputs, nnz = map(np.array, zip(*seen, strict=True))
    assert np.array_equal(np.sort(rows), rows) and rows[-1] <= 400
    shares = rows / 400
    assert inputs == pytest.approx(shares * 200, abs=1) and outputs == pytest.approx(
        shares * 160, abs=1
    )
    assert nnz == pytest.approx(inputs * outputs * 0.1, abs=1)


@pytest.mark.parametrize("slow", [0.0, 1e-9], ids=["fast", "slow"])
def test_the_time_of_the_layer_goes_on_from_the_last_two_pieces(monkeypatch, slow):
    """A solver whose time is linear in its work is foreseen exactly, however long it takes."""
    pieces = []

    def solve_piece(run, layer, places, rows, share):
        pieces.append(share)
        flops = planning._solver_flops(layer.W, rows, run.choices[layer.name]) * share**3
        return flops, 0.003 + slow * flops

    monkeypatch.setattr(planning, "_solve_piece", solve_piece)
    monkeypatch.setattr(planning, "measured_rate", lambda: np.inf)
    (wide,) = planned(WIDE, X, tolerance=0.1).layers
    assert wide.seconds == pytest.approx(0.003 + slow * wide.flops, rel=0.01)
    assert (pieces[-1] == 1.0) == (slow == 0)


def test_a_solver_that_is_slow_on_a_first_piece_gets_no_larger_one(monkeypatch):
    pieces = []

    def solve_piece(run, layer, places, rows, share):
        pieces.append(share)
        flops = planning._solver_flops(layer.W, rows, run.choices[layer.name])
        return share**3 * flops, 7.0

    monkeypatch.setattr(planning, "_solve_piece", solve_piece)
    (wide,) = planned(WIDE, X, tolerance=0.0).layers
    assert len(set(pieces)) == 1 and pieces[0] < 1
    assert wide.seconds == pytest.approx(7.0 / pieces[0] ** 3, rel=0.01)


@pytest.mark.parametrize(
    "how",
    [{"steps": "admm"}, {"steps": "alps"}, {"steps": "sparsegpt"}, {"steps": Pipeline(L0())},
     {"steps": Pipeline(Reweight(1), L0(start="before"))}],
    ids=["admm", "alps", "sparsegpt", "l0", "reweighted"],
)  # fmt: skip
@pytest.mark.parametrize("budget", [{"sparsity": 0.8}, {"tolerance": 0.3}], ids=["zeros", "radius"])
def test_layers_of_all_kinds_have_a_time(how, budget):
    network = Network(
        [
            Conv2d(RNG.standard_normal((6, 2, 3, 3)), np.zeros(6), groups=2, name="conv"),
            Activate(PReLU(np.linspace(0.1, 0.6, 6))), Flatten(),
            Dense(RNG.standard_normal((6 * 36, 5)), name="dense"),
        ],
        input_shape=(4, 8, 8),
    )  # fmt: skip
    plan = planned(network, RNG.standard_normal((20, 4, 8, 8)), **how, **budget)
    assert plan.seconds == sum(one.seconds for one in plan.layers) > 0


def test_a_time_that_cannot_be_known_is_left_open():
    def broken(problem, nnz=None, **call):
        raise RuntimeError("not today")

    for how in ({"steps": broken}, {"steps": "cvxpy"}):
        plan = planned(WIDE, X, tolerance=0.1, **how)
        assert plan.seconds is None and plan.table().splitlines()[-1].split()[-1] == "?"


def test_samples_are_drawn_from_all_batches():
    data = Calibration([np.full((5, 2), float(i)) for i in range(40)], batch_size=3)
    drawn = draw(data, 60, seed=1)
    assert drawn.shape == (60, 2) and np.all(np.diff(drawn[:, 0]) >= 0)
    assert len(np.unique(drawn[:, 0])) > 20  # of 40 batches
    assert np.array_equal(draw(data, 1000, seed=1), np.concatenate([*data.batches()]))

"""Masked fine-tuning in PyTorch, and its benchmark."""

import copy
import json
import math
from argparse import Namespace
from functools import partial

import numpy as np
import pytest

from benchmarks import __main__ as harness
from benchmarks import finetune
from benchmarks.noise import SIGMAS
from nettrim_solver.exceptions import NettrimError, SolverError
from nettrim_solver.frameworks.torch_training import fine_tune

from .test_experiments import small_classifier

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        module[0].weight[torch.rand(8, 6) < 0.6] = 0
    module[1].eval()
    return module


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(60, 6, generator=generator)
    labels = samples[:, :3].argmax(dim=1)
    return [(samples[k : k + 20], labels[k : k + 20]) for k in (0, 20, 40)]


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# The helper --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", [None, partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW]
)
def test_zeros_stay_and_the_rest_learns(module, loader, optimizer):
    zeros, modes = module[0].weight == 0, [part.training for part in module.modules()]
    losses = fine_tune(module, loader, epochs=20, lr=0.02, optimizer=optimizer)
    assert torch.equal(module[0].weight == 0, zeros)
    assert len(losses) == 20 and losses[-1] < 0.7 * losses[0]
    assert [part.training for part in module.modules()] == modes
    # The hooks are gone: training goes on freely.
    module(loader[0][0]).square().mean().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert not torch.equal(module[0].weight == 0, zeros)


def test_one_epoch_is_the_steps_of_the_optimizer_at_a_falling_rate(loader):
    module = nn.Linear(6, 3)
    with torch.no_grad():
        module.weight[0, :3] = 0
    twin, mask = copy.deepcopy(module), (module.weight != 0).float()
    losses = fine_tune(module, loader, epochs=2, lr=0.5, optimizer=torch.optim.SGD)
    means = []
    for rate in (0.5, 0.25):
        values = []
        for inputs, labels in loader:
            value = nn.functional.cross_entropy(twin(inputs), labels)
            slopes = torch.autograd.grad(value, [twin.weight, twin.bias])
            with torch.no_grad():
                twin.weight -= rate * mask * slopes[0]
                twin.bias -= rate * slopes[1]
            values.append(value.item())
        means.append(np.mean(values))
    torch.testing.assert_close(module.weight, twin.weight)
    torch.testing.assert_close(module.bias, twin.bias)
    np.testing.assert_allclose(losses, means, rtol=1e-5)


def test_a_loss_of_ones_own_and_a_module_without_zeros():
    torch.manual_seed(0)
    module, samples = nn.Linear(4, 2), torch.randn(40, 4)
    targets = samples @ torch.randn(4, 2)
    (first, *_, last) = fine_tune(
        module, [(samples, targets)], epochs=200, lr=0.1, loss=nn.functional.mse_loss
    )
    assert last < 1e-3 * first


def test_frozen_parameters_stay(module, loader):
    module[3].weight.requires_grad_(False)
    old = module[3].weight.clone()
    fine_tune(module, loader, epochs=1)
    assert torch.equal(module[3].weight, old)


BAD = {
    "module": (lambda m, d: fine_tune(3, d), "module must be a torch.nn.Module"),
    "loader": (lambda m, d: fine_tune(m, 3), "loader must be an iterable"),
    "text": (lambda m, d: fine_tune(m, "abc"), "loader must be an iterable"),
    "epochs": (lambda m, d: fine_tune(m, d, epochs=0), "epochs must be an integer >= 1"),
    "lr": (lambda m, d: fine_tune(m, d, lr=-1), "lr must lie in"),
    "loss": (lambda m, d: fine_tune(m, d, loss="mse"), "loss must be callable"),
    "optimizer": (lambda m, d: fine_tune(m, d, optimizer="adam"), "optimizer must be callable"),
    "frozen": (
        lambda m, d: fine_tune(m.requires_grad_(False), d),
        "module must have parameters that require a gradient",
    ),
    "no pairs": (lambda m, d: fine_tune(m, [d[0][0]]), "batch 0 of the loader must be a pair"),
    "empty": (lambda m, d: fine_tune(m, []), "but gave none in epoch 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_changes_nothing(module, loader, name):
    call, message = BAD[name]
    before = state(module)
    with pytest.raises(NettrimError, match=message):
        call(module, loader)
    assert all(torch.equal(value, before[key]) for key, value in state(module).items())


def test_a_loader_that_can_be_read_once_is_noticed(module, loader):
    with pytest.raises(NettrimError, match="gave none in epoch 2"):
        fine_tune(module, iter(loader), epochs=2)


def test_a_loss_that_is_not_finite_ends_it_with_finite_weights(module, loader):
    calls = []

    def loss(outputs, labels):
        calls.append(None)
        value = nn.functional.cross_entropy(outputs, labels)
        return value * (math.nan if len(calls) == 5 else 1)

    modes = [part.training for part in module.modules()]
    with pytest.raises(SolverError, match=r"loss is nan in epoch 2, batch 1"):
        fine_tune(module, loader, epochs=3, loss=loss)
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    assert [part.training for part in module.modules()] == modes


# The benchmarks ----------------------------------------------------------------------------------


@pytest.fixture
def small():
    data, labels = small_classifier()
    return finetune.Task(data, labels)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path


def test_a_module_computes_what_its_network_does(small):
    network, X = small.data.network, small.data.X_test
    module = finetune.module_of(network)
    outputs = module(torch.as_tensor(X, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(outputs, network(X), atol=1e-5)


@pytest.mark.parametrize("zeros", [0.5, 0.9])
def test_one_threshold_in_deviations_for_all_layers(small, zeros):
    network = small.data.network
    pruned = finetune.by_deviation(network, zeros)
    assert round(zeros * network.n_weights) == network.n_weights - pruned.nnz
    kept, gone = [], []
    for old, new in zip(network.layers, pruned.layers, strict=True):
        sizes = np.abs(old.W) / old.W.std()
        np.testing.assert_array_equal(new.W[new.W != 0], old.W[new.W != 0])
        kept += list(sizes[new.W != 0])
        gone += list(sizes[new.W == 0])
    assert max(gone) < min(kept)


def test_the_benchmark_goes_on_where_it_was_interrupted(small, results, monkeypatch, capsys):
    monkeypatch.setattr(finetune, "load", lambda name: small)
    args = {"quick": True, "seeds": 1, "network": None}
    cut = finetune.run(Namespace(minutes=0.0, **args))
    assert not cut["whole"] and cut["rows"] == []
    monkeypatch.setattr(finetune, "METHODS", finetune.METHODS[3:6])
    whole = harness.plain(finetune.run(Namespace(minutes=None, **args)))
    assert whole["whole"] and not list(results.iterdir())
    rows = whole["rows"]
    assert [row["method"] for row in rows] == ["dense", "prune and retrain", *["magnitude"] * 3]
    for row in rows[1:]:
        assert row["zeros"] == pytest.approx(0.9, abs=1 / small.data.network.n_weights)
        assert set(row["before"]["noise"]) == {f"{sigma:g}" for sigma in SIGMAS}
    assert rows[1]["epochs"] == 4 * rows[2]["epochs"]
    assert rows[0]["before"]["accuracy"] == 1.0
    text = finetune.describe(whole)
    assert f"{rows[1]['after']['accuracy']:.4f}" in text and "prune and retrain" in text
    finetune.plot(json.loads(json.dumps(whole)), results / "plot.png")
    assert (results / "plot.png").read_bytes().startswith(b"\x89PNG")

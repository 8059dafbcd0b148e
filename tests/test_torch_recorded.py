"""PyTorch: modules that torch.fx cannot trace, recorded while they run."""

import re
import warnings

import numpy as np
import pytest

from nettrim_solver.exceptions import NettrimError, ProblemError, UnsupportedError
from nettrim_solver.frameworks import from_torch, to_npz, to_torch

from .helpers import prune
from .tolerances import TOLERANCE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Looping(nn.Module):
    """Layers in a loop over the shape of the data; one is called twice, one never."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.input = nn.Linear(6, 6)
        self.twice, self.never = nn.Linear(6, 6), nn.Linear(6, 6)
        self.inside = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))
        self.output = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu_(self.input(x))
        for number in range(x.shape[1] // 2):
            x = x + self.blocks[number](x).relu_()
        if float(x.detach().abs().max()) < 0:
            x = self.never(x)
        return self.output(self.inside(self.twice(torch.tanh(self.twice(x)))))


class Residual(nn.Module):
    """Convolutions with batch normalisations, changed in place, and a 1-d one behind them."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, groups=g) for g in (1, 2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        self.line, self.head = nn.Conv1d(6, 4, 3, stride=2), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu_(self.norm(self.stem(x)))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = norm(conv(x))
            x = x + (y if int(y.shape[0]) < 0 else y.relu_())
        lines = self.line(x.mean(2))
        return self.head(lines.flatten(1)) if float(lines.shape[0]) else lines


class Tokens(nn.Module):
    """A transformer layer, and a linear one that gets the vectors as rows of the batch."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.pieces, self.head = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.encoder(self.embed(x))
        rows = [piece for sample in x for piece in sample.unbind(0)]
        return self.head(self.pieces(torch.stack(rows)).view(len(x), -1, 5).amax(1))


def trained(kind, dtype=torch.float32):
    torch.manual_seed(0)
    module = kind().to(dtype)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module


def samples(shape, n=60, dtype=np.float32):
    return np.random.default_rng(1).standard_normal((n, *shape)).astype(dtype)


def outputs(module, X):
    modes = [(part, part.training) for part in module.modules()]
    with torch.no_grad():
        found = module.eval()(torch.tensor(X)).numpy()
    for part, mode in modes:
        part.training = mode
    return found


SHAPES = {Looping: (6,), Residual: (2, 5, 5), Tokens: (3, 4)}
LAYERS = {
    Looping: ["input_1", "blocks.0", "blocks.1", "blocks.2", "inside.1", "output"],
    Residual: ["stem", "convs.0", "convs.1", "line", "head"],
    Tokens: ["embed", "encoder.linear1", "encoder.linear2", "pieces", "head"],
}
KINDS = pytest.mark.parametrize("kind", SHAPES, ids=lambda kind: kind.__name__)


@KINDS
@pytest.mark.parametrize("mode", ["cascade", "parallel"])
def test_what_cannot_be_traced_is_pruned_and_written_back(kind, mode):
    module, X = trained(kind), samples(SHAPES[kind])
    with pytest.raises(UnsupportedError, match="record=True"):
        from_torch(module, SHAPES[kind])
    module.train()
    list(module.children())[-1].eval()
    modes = [part.training for part in module.modules()]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    network = from_torch(module, SHAPES[kind], record=True)
    assert [layer.name for layer in network.layers] == LAYERS[kind]
    expected = outputs(module, X)
    np.testing.assert_allclose(network(X), expected, rtol=0, atol=TOLERANCE["recorded"])
    np.testing.assert_allclose(network(X, 7), expected, rtol=0, atol=TOLERANCE["recorded"])

    result = prune(network, X, steps="alps", sparsity=0.5, mode=mode)
    pruned = to_torch(module, result.network)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    found = outputs(pruned, X)
    np.testing.assert_allclose(found, result.network(X), rtol=0, atol=TOLERANCE["recorded"])
    assert np.abs(found - expected).max() > 100 * TOLERANCE["recorded"]
    written = {name.removesuffix("_1") for name in LAYERS[kind]}
    for key, value in pruned.state_dict().items():
        name, _, what = key.rpartition(".")
        if name not in written:
            assert torch.equal(value, state[key])
        elif what == "weight":
            # Half of every layer, or of every group of filters, up to one weight.
            assert abs(int((value == 0).sum()) - value.numel() / 2) <= 2


def test_layers_that_stay_are_named_with_the_reason():
    network = from_torch(trained(Looping), (6,), record=True, opaque=["inside"])
    left = network.output.left
    assert {*left} == {"twice", "never", "inside.1"}
    assert "once per forward" in left["twice"] and "never called" in left["never"]
    assert "opaque" in left["inside.1"]
    assert all(f"{name!r} stays" in repr(network.output) for name in left)
    again = from_torch(to_torch(trained(Looping), network), (6,), record=True, opaque=["inside"])
    assert repr(again.output) == repr(network.output)  # Written back as it was read.


@pytest.mark.parametrize("mode", ["cascade", "parallel"])
def test_a_chain_of_linear_layers_is_pruned_as_when_it_is_traced(mode):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 7), nn.Linear(7, 6), nn.Linear(6, 5)).double()
    X = samples((8,), dtype=np.float64)
    found = [
        prune(
            from_torch(module, (8,), record=flag), X, steps="alps", sparsity=0.5, mode=mode
        ).network
        for flag in (False, True)
    ]
    for one, other in zip(found[0].layers, found[1].layers, strict=True):
        assert one.name == other.name
        np.testing.assert_allclose(one.W, other.W, rtol=0, atol=TOLERANCE["recorded_64"])
        np.testing.assert_array_equal(one.W == 0, other.W == 0)


def test_a_recorded_network_does_not_change_with_its_module():
    module, X = trained(Residual, torch.float64), samples((2, 5, 5), dtype=np.float64)
    network = from_torch(module, (2, 5, 5), record=True)
    before = network(X)
    assert before.dtype == np.float64
    with torch.no_grad():
        module.norms[0].weight += 1
    np.testing.assert_array_equal(network(X), before)
    other = from_torch(module, (2, 5, 5), record=True)
    assert repr(other.output) != repr(network.output)  # Checkpoints tell them apart.


def test_parts_may_have_the_name_of_the_input():
    def forward(self, x):
        return self.last(self.input_1(torch.relu(self.input(x))))

    parts = {"input": nn.Linear(4, 5), "input_1": nn.Linear(5, 4)}
    module, X = Of(forward, **parts), samples((4,))
    for flag in (True, False):
        network = from_torch(module, (4,), record=flag)
        assert [layer.name for layer in network.layers] == ["input_2", "input_1", "last"]
        pruned = prune(network, X, steps="magnitude", sparsity=0.5).network
        found = to_torch(module, pruned)
        np.testing.assert_array_equal(found.input.weight == 0, pruned.layer("input_2").W.T == 0)
        np.testing.assert_array_equal(found.input_1.weight == 0, pruned.layer("input_1").W.T == 0)


def test_a_layer_that_takes_no_samples_stays():
    """As that which a parameter goes through, the same for all samples."""
    module = Of(lambda self, x: self.last(x) + self.fc(self.query), shared=nn.Linear(4, 4))
    module.query = nn.Parameter(torch.ones(4))
    module.tied = nn.Linear(4, 4)
    module.tied.weight = module.shared.weight
    network = from_torch(module, (4,), record=True)
    assert [layer.name for layer in network.layers] == ["last"]
    assert "samples apart" in network.output.left["fc"]
    assert "shared" in network.output.left["shared"]


def test_an_interrupted_run_goes_on(tmp_path):
    X = samples((3, 4))
    settings = {"steps": "alps", "sparsity": 0.5, "checkpoint": tmp_path / "run"}
    first = prune(from_torch(trained(Tokens), (3, 4), record=True), X, **settings)
    again = prune(from_torch(trained(Tokens), (3, 4), record=True), X, **settings)
    np.testing.assert_array_equal(again.network(X), first.network(X))
    with pytest.raises(NettrimError):
        other = trained(Tokens)
        with torch.no_grad():
            other.encoder.norm1.weight += 1
        prune(from_torch(other, (3, 4), record=True), X, **settings)


class Of(nn.Module):
    """A forward with some linear layers."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.fc, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def recorded(forward, shape=(4,), **more):
    return lambda: from_torch(Of(forward), shape, record=True, **more)


def ordered_by_data():
    """Return what a network says whose layers change places for large samples."""

    def forward(self, x):
        parts = [self.fc, self.last] if float(x.abs().max()) < 50 else [self.last, self.fc]
        return parts[1](parts[0](x))

    return from_torch(Of(forward), (4,), record=True)(np.full((2, 4), 99.0, np.float32))


def skipping_by_data():
    return from_torch(
        Of(lambda self, x: self.last(self.fc(x)) if float(x.abs().max()) < 50 else x),
        (4,), record=True,
    )(np.full((2, 4), 99.0, np.float32))  # fmt: skip


BAD = {
    "no shape": (recorded(lambda self, x: self.fc(x), None), ProblemError, "input_shape must"),
    "wrong shape": (recorded(lambda self, x: self.fc(x), (5,)), ProblemError,
                    r"shape \(5,\).*says"),
    "no flag": (lambda: from_torch(nn.Linear(4, 3), (4,), record="yes"), NettrimError, "record"),
    "no layer": (recorded(lambda self, x: x + 1), UnsupportedError, "'fc': it is never called"),
    "nothing left": (recorded(lambda self, x: self.fc(x), opaque=["*"]), UnsupportedError,
                     "by opaque"),
    "mixed samples": (recorded(lambda self, x: self.fc(x) - x.mean(0)), UnsupportedError,
                      "each by itself"),
    "two outputs": (recorded(lambda self, x: (self.fc(x), x)), UnsupportedError, "not a tuple"),
    "weights read": (recorded(lambda self, x: self.fc(x) @ self.fc.weight), UnsupportedError,
                     r"\['fc'\] by calling"),
    "order": (ordered_by_data, ProblemError, "'last' was called where 'fc' was expected"),
    "skipped": (skipping_by_data, ProblemError, "'fc' was not called"),
    "half": (lambda: from_torch(nn.Linear(4, 3).half(), (4,), record=True), ProblemError,
             r"module.float\(\)"),
    "to a file": (lambda: to_npz(from_torch(nn.Linear(4, 3), (4,), record=True), "never.npz"),
                  ProblemError, "to_torch"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_recorded_is_refused(what):
    make, kind, message = BAD[what]
    with pytest.raises(kind) as caught:
        make()
    assert re.search(message, str(caught.value)), str(caught.value)

"""PyTorch: networks of modules, pruned modules back, and zeros kept in training."""

import copy
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from nettrim_solver.exceptions import NettrimError, ProblemError
from nettrim_solver.frameworks import (
    calibration_batches,
    from_torch,
    keep_zeros,
    to_npz,
    to_torch,
)
from nettrim_solver.frameworks import torch as torch_page
from nettrim_solver.network import BatchNorm, Dense, Network
from nettrim_solver.storage import save_sparse

from .helpers import prune
from .tolerances import TOLERANCE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IMAGE = (3, 8, 9)


class Forward(nn.Module):
    """A module of some parts and a forward that a test gives."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.register_buffer("means", torch.tensor([0.5, -1.0, 2.0])[:, None, None])
        self.register_buffer("deviations", torch.tensor([2.0, 3.0, 0.5])[None, :, None, None])
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


class Scaled(nn.Linear):
    """A linear module that computes something else."""

    def forward(self, x):
        return F.linear(2 * x, self.weight, self.bias)


class Renamed(nn.Linear):
    """A linear module by another name."""


class Gate(nn.Module):
    """A part that torch.fx cannot trace, with a layer of its own."""

    def __init__(self, size):
        super().__init__()
        self.inner = nn.Linear(size, size)

    def forward(self, x):
        return x.mul_(2) if x.shape[-1] < 4 or bool((x > 1e9).any()) else torch.sin(self.inner(x))


class Block(nn.Module):
    def __init__(self, channels, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=2, bias=False)
        self.bn2 = norm(channels)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def functional(self, x):
    x = (x - self.means) / self.deviations
    x = F.max_pool2d(F.relu(self.conv(x)), 2)
    x = F.avg_pool2d(F.leaky_relu(x, 0.2), 2, 1, 0)
    x = F.dropout(x, training=self.training)
    x = torch.flatten(x, 1)
    x = torch.tanh(self.fc(x)) * 2 + 1
    x = x.view(x.size(0), 2, -1).permute(0, 2, 1).reshape(-1, 6)
    return F.log_softmax(self.out(F.gelu(x)).sigmoid(), dim=1)


def in_place(self, x):
    y = self.fc(x)
    z = y.relu_()
    return self.out(y + F.elu(z, inplace=True))


def pooled(self, x):
    x = F.adaptive_avg_pool2d(self.conv(x), (3, 1))
    x = x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)
    return F.softmax(self.out(x.unsqueeze(1).flatten(1).clamp(min=0)), -1)


def several(self, x):
    hidden = F.silu(self.fc(x))
    return self.out(hidden.add(x) - 1.5) + self.skip(hidden)


def mixed(self, x):
    y = self.inner(F.gelu(self.outer(x.transpose(1, 2)))).transpose(1, 2)
    return self.out((x + y).mean(1, keepdim=True).flatten(1) * self.means.flatten()[:2].sum())


def concatenated(self, x):
    vectors = torch.cat([self.a(x), self.b(x) * 2.0], -1)
    lines = torch.cat([self.c(x), torch.relu(self.d(x))], dim=1)
    ends = torch.cat((lines, lines + 1), 2)
    return self.out(torch.cat([vectors.flatten(1), ends.mean(-1)], 1))


def activated():
    modules = [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.PReLU(6), nn.PReLU(), nn.Hardtanh(),
               nn.Hardtanh(0, 3), nn.Hardsigmoid(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(),
               nn.ELU(0.7), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Dropout(), nn.Identity(),
               nn.LeakyReLU(0)]  # fmt: skip
    return {
        str(module).lower(): (lambda m=module: chain(nn.Linear(5, 6), m, nn.Linear(6, 2)), (5,))
        for module in modules
    }  # fmt: skip


def chain(*modules):
    return nn.Sequential(*modules)


#: Modules to read, and the shape of one sample.
MODULES = {
    **activated(),
    "one linear": (lambda: nn.Linear(4, 3), (4,)),
    "no intercepts": (lambda: chain(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)), (4,)),
    "subclass": (lambda: chain(Renamed(4, 3), nn.LogSoftmax(dim=1)), (4,)),
    "double": (lambda: chain(nn.Linear(4, 3), nn.Tanh(), nn.Softmax(-1)).double(), (4,)),
    "nested": (
        lambda: chain(
            chain(nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 2)), nn.ReLU()),
            nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=3, bias=False),
            nn.BatchNorm2d(6), nn.ReLU6(), nn.MaxPool2d(3, 2, padding=1, ceil_mode=False),
            nn.AvgPool2d(2, 1, padding=1, count_include_pad=False), nn.Flatten(),
            nn.Linear(6 * 3 * 7, 4), nn.BatchNorm1d(4, affine=False),
        ),
        IMAGE,
    ),
    "adaptive": (
        lambda: chain(nn.Conv2d(3, 4, 3, padding="valid"), nn.AdaptiveAvgPool2d((3, None)),
                      nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
                      nn.Unflatten(1, (2, 1)), nn.Flatten(start_dim=1)),
        IMAGE,
    ),
    "1-d": (
        lambda: chain(nn.Conv1d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm1d(6),
                      nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 4, 3, padding="same", groups=2),
                      nn.AvgPool1d(2, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)),
        (3, 24),
    ),
    "1-d output": (lambda: chain(nn.Conv1d(3, 6, 3), nn.Tanh(), nn.Softmax(1)), (3, 9)),
    "residual": (
        lambda: chain(nn.Conv2d(3, 4, 3), Block(4), Block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                      nn.Linear(4, 3)),
        IMAGE,
    ),
    "functional": (
        lambda: Forward(functional, conv=nn.Conv2d(3, 4, 3, padding=1), fc=nn.Linear(36, 6),
                out=nn.Linear(6, 3)),
        IMAGE,
    ),
    "vectors": (
        lambda: chain(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.PReLU(3), nn.Linear(5, 5),
                      nn.BatchNorm1d(3), nn.Softmax(-1), nn.Linear(5, 2)),
        (3, 4),
    ),
    "grid of vectors": (
        lambda: Forward(lambda self, x: self.out(torch.tanh(self.fc(x)).mean((1, 2))),
                        fc=nn.Linear(4, 6), out=nn.Linear(6, 3)),
        (2, 3, 4),
    ),
    "mixed vectors": (
        lambda: Forward(mixed, outer=nn.Linear(6, 9), inner=nn.Linear(9, 6), out=nn.Linear(4, 2)),
        (6, 4),
    ),
    "concatenated": (
        lambda: Forward(concatenated, a=nn.Linear(7, 4), b=nn.Linear(7, 3), c=nn.Conv1d(3, 4, 3),
                        d=nn.Conv1d(3, 2, 3), out=nn.Linear(27, 2)),
        (3, 7),
    ),
    "in place": (lambda: Forward(in_place, fc=nn.Linear(4, 4), out=nn.Linear(4, 2)), (4,)),
    "pooled": (lambda: Forward(pooled, conv=nn.Conv2d(3, 4, 3), out=nn.Linear(4, 2)), IMAGE),
    "several": (
        lambda: Forward(several, fc=nn.Linear(4, 4), out=nn.Linear(4, 2), skip=nn.Linear(4, 2)),
        (4,),
    ),
}  # fmt: skip


def made(name, seed=0):
    """A module of the table with statistics as after training, the shape of a sample, samples."""
    make, shape = MODULES[name]
    torch.manual_seed(seed)
    module = make()
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.normal_()
            part.running_var.uniform_(0.3, 2.0)
            if part.affine:
                nn.init.uniform_(part.weight, 0.4, 2.0)
                nn.init.normal_(part.bias)
                with torch.no_grad():
                    part.weight[0] *= -1
    dtype = next(module.parameters()).dtype
    return module, shape, torch.randn(60, *shape, dtype=dtype)


def outputs(module, samples):
    with torch.no_grad():
        return copy.deepcopy(module).eval()(samples).numpy()


def assert_close(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= TOLERANCE["network_single"] * scale


@pytest.mark.parametrize("name", MODULES)
def test_a_network_computes_what_its_module_does(name):
    module, shape, samples = made(name)
    network = from_torch(module, shape)
    assert_close(network(samples.numpy()), outputs(module, samples))
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    layers = [key for key, part in module.named_modules() if isinstance(part, kinds)]
    assert [layer.name for layer in network.layers] == ([key or "linear" for key in layers])
    assert all(part.training for part in module.modules())


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_a_pruned_module_computes_what_the_pruned_network_does(name, inplace, folded):
    module, shape, samples = made(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    network = from_torch(module, shape)
    network = network.folded() if folded else network
    # Half of the weights gone, and other intercepts, as a refit gives them.
    pruned = network.replace({
        layer.name: (
            np.where(np.abs(layer.W) < np.median(np.abs(layer.W)), 0, layer.W * 1.1),
            None if layer.b is None else layer.b + 0.1,
        )
        for layer in network.layers
    })  # fmt: skip
    result = to_torch(module, pruned, inplace=inplace)
    assert (result is module) == inplace
    assert_close(outputs(result, samples), pruned(samples.numpy()))
    after = result.state_dict()
    assert [*after] == [*before]
    for key, value in after.items():
        assert (value.dtype, value.shape) == (before[key].dtype, before[key].shape)
        if not inplace:
            assert torch.equal(module.state_dict()[key], before[key])
    again = from_torch(result, shape)
    for layer in pruned.layers:
        np.testing.assert_array_equal(again.layer(layer.name).W == 0, layer.W == 0)
    assert all(part.training for part in result.modules())


@pytest.mark.parametrize("name", ["nested", "residual", "1-d"])
def test_prune_network_and_back(name):
    module, shape, samples = made(name)
    network = from_torch(module, shape)
    result = prune(network, calibration_batches(samples), steps="magnitude", sparsity=0.6)
    norms = {op.name for op in result.network.operations if isinstance(op, BatchNorm)}
    assert not norms & {"1.bn1", "1.bn2"}
    pruned = to_torch(module, result.network)
    assert_close(outputs(pruned, samples), result.network(samples.numpy()))
    zeros = sum(int((p == 0).sum()) for key, p in pruned.named_parameters() if p.ndim > 1)
    assert zeros == result.network.n_weights - result.network.nnz > 0


def test_channels_that_a_normalisation_switches_off():
    module, shape, samples = made("nested")
    with torch.no_grad():
        module[2].weight[1] = 0
    network = from_torch(module, shape).folded()
    assert_close(outputs(to_torch(module, network), samples), network(samples.numpy()))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.01),
    ],
)
def test_zeros_stay_in_training_until_the_hooks_are_removed(optimizer):
    module, shape, samples = made("residual")
    stepper = optimizer(module.parameters())

    def train():
        for _ in range(3):
            stepper.zero_grad()
            module(samples).square().mean().backward()
            stepper.step()

    train()  # Momentum from before the pruning would move the zeros.
    network = from_torch(module, shape)
    result = prune(network, samples.numpy(), steps="magnitude", sparsity=0.5)
    to_torch(module, result.network, inplace=True)
    weights = {key: p for key, p in module.named_parameters() if p.ndim > 1}
    zeros = {key: p.detach() == 0 for key, p in weights.items()}
    old = {key: p.detach().clone() for key, p in weights.items()}
    with keep_zeros(module) as kept:
        assert sum(kept.zeros.values()) == sum(int(mask.sum()) for mask in zeros.values())
        train()
        for key, p in weights.items():
            assert torch.all(p[zeros[key]] == 0) and torch.all(p.grad[zeros[key]] == 0)
            assert not torch.equal(p, old[key])
    train()
    assert any(bool((p[zeros[key]] != 0).any()) for key, p in weights.items())


def test_intercepts_may_leave_zero():
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.bias.zero_()
        module.weight[0, 0] = 0
    keep_zeros(module)
    module(torch.ones(4, 3)).sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert torch.all(module.bias != 0) and module.weight[0, 0] == 0
    assert int((module.weight == 0).sum()) == 1


def test_batches_of_a_loader():
    samples, labels = torch.randn(20, 4), torch.arange(20)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(samples, labels), 8)
    batches = calibration_batches(loader)
    for _ in range(2):  # As often as asked.
        np.testing.assert_array_equal(np.concatenate(list(batches)), samples.numpy())
    (half,) = calibration_batches([samples.bfloat16().requires_grad_()])
    assert half.dtype == np.float32
    with pytest.raises(ProblemError, match=r"batch 0 .* but was dict"):
        list(calibration_batches([{"x": samples}]))
    with pytest.raises(ProblemError, match=r"iterable of batches, but was int"):
        calibration_batches(3)


def test_parts_keep_their_own_mode():
    module, shape, _ = made("residual")
    module[1].eval()
    modes = [part.training for part in module.modules()]
    network = from_torch(module, shape)
    assert [part.training for part in module.modules()] == modes
    assert [part.training for part in to_torch(module, network).modules()] == modes


def gated():
    torch.manual_seed(0)
    blocks = [chain(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU()) for _ in range(2)]
    return chain(*blocks, Gate(6), nn.Dropout(), nn.Linear(6, 2))


@pytest.mark.parametrize("names", [["0.1", "1.1", "2"], ["?.1", "Gate"], {"LayerNorm", "2"}])
def test_parts_that_are_left_to_pytorch(names):
    module, samples = gated(), torch.randn(50, 6)
    before = copy.deepcopy(module.state_dict())
    network = from_torch(module, opaque=names)
    assert [layer.name for layer in network.layers] == ["0.0", "1.0", "4"]
    assert [op.name for op in network.operations if op.kind == "opaque"] == ["0.1", "1.1", "2"]
    given = samples.numpy().copy()
    given.flags.writeable = False
    assert_close(network(given), outputs(module, samples))
    result = prune(network, given, steps="magnitude", sparsity=0.5, mode="cascade")
    pruned = to_torch(module, result.network)
    assert_close(outputs(pruned, samples), result.network(given))
    for key, value in pruned.state_dict().items():
        same = torch.equal(value, before[key])
        assert same == (key not in ("0.0.weight", "1.0.weight", "4.weight")) or "bias" in key
    assert all(part.training for part in module.modules())


def test_a_part_left_to_pytorch_does_not_change_with_its_module():
    module = gated()
    network = from_torch(module, opaque=["LayerNorm", "Gate"])
    samples = np.ones((3, 6), np.float32)
    before = network(samples)
    (words,) = {repr(op) for op in network.operations if op.name == "2"}
    with torch.no_grad():
        module[2].inner.weight += 1
    np.testing.assert_array_equal(network(samples), before)
    other = from_torch(module, opaque=["LayerNorm", "Gate"])
    assert words not in {repr(op) for op in other.operations}  # Checkpoints tell them apart.


def failing(forward, **parts):
    return lambda: from_torch(Forward(forward, **parts), (4,))


def hooked():
    module = nn.Linear(4, 3)
    module.register_forward_hook(lambda part, args, output: output + 1)
    return from_torch(module)


def masked():
    module = chain(nn.Linear(4, 3))
    from torch.nn.utils import prune

    prune.random_unstructured(module[0], "weight", 0.5)
    return from_torch(module, (4,))


def parametrized():
    module = chain(nn.Linear(4, 3))
    torch.nn.utils.parametrizations.orthogonal(module[0])
    return from_torch(module, (4,))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Mixing(nn.Module):
    def forward(self, x):
        return x.sum(0)


def tied():
    module = chain(nn.Linear(6, 6), Gate(6))
    module[1].inner.weight = module[0].weight
    return from_torch(module, opaque=["1"])


def opaque_network():
    return from_torch(gated(), opaque=["LayerNorm", "Gate"])


def compiled():
    module = chain(nn.Linear(4, 3))
    module._orig_mod = nn.Linear(4, 3)  # As torch.compile does, which takes seconds to import.
    return from_torch(module)


BAD = {
    "untraceable part": (lambda: from_torch(chain(nn.Linear(6, 6), chain(Gate(6)))),
                         r"in '1.0'\).*opaque=\['1.0'\] leaves"),
    "unsupported part": (lambda: from_torch(gated(), opaque=["2"]), r"opaque=\['0.1'\] leaves"),
    "no such part": (lambda: from_torch(gated(), opaque=["Gate", "3.x"]), r"called '3.x'.*'0.1'"),
    "opaque number": (lambda: from_torch(gated(), opaque=3), "nothing is called 3"),
    "opaque pair": (lambda: from_torch(chain(nn.Linear(4, 4), Pair()), opaque=["1"]),
                    "must return one tensor, not a tuple"),
    "opaque mixture": (lambda: from_torch(chain(nn.Linear(4, 4), Mixing()), opaque=["1"]),
                       "one row per sample"),
    "opaque with other inputs": (lambda: from_torch(chain(nn.Linear(6, 5), Gate(6)), opaque=["1"]),
                                 r"must take samples of shape \(5,\)"),
    "opaque and tied": (tied, "are shared"),
    "not to a file": (lambda: to_npz(opaque_network(), "never.npz"),
                      r"'0.1' \(opaque\) must be .* to_torch"),
    "not to a sparse file": (lambda: save_sparse("never.npz", opaque_network()), "to_torch"),
    "compiled": (compiled, "module._orig_mod"),
    "a script": (lambda: from_torch(torch.jit.script(nn.Linear(4, 3))), "cannot be traced again"),
    "no module": (lambda: from_torch(3), r"torch.nn.Module, but was int"),
    "unknown module": (lambda: from_torch(chain(nn.Linear(4, 4), chain(nn.LSTM(4, 4)))),
                       r"module '1.0' \(LSTM\).*not supported; supported are .*Conv2d"),
    "unknown function": (failing(lambda self, x: torch.sin(x)), r"function 'sin'.*not supported"),
    "samples put together": (failing(lambda self, x: torch.cat([x, x])), "'cat'.*was 0"),
    "with a constant": (failing(lambda self, x: torch.cat([x, self.means.flatten()], 1)),
                        "with signals alone"),
    "mean": (failing(lambda self, x: x.mean(1)), "means are supported over all positions"),
    "decision": (failing(lambda self, x: x if x.sum() > 0 else -x), "torch.fx can trace"),
    "two outputs": (failing(lambda self, x: (x + 1, x)), "must return one tensor"),
    "input shape": (lambda: from_torch(nn.Conv2d(3, 4, 3)), r"input_shape must be given"),
    "bad input shape": (lambda: from_torch(nn.Conv2d(3, 4, 3), (3, 0, 1)), r"was \(3, 0, 1\)"),
    "wrong input shape": (lambda: from_torch(chain(nn.Conv2d(3, 4, 3)), (1, 8, 8)),
                          r"module '0' \(Conv2d\).*\(3, height, width\)"),
    "shared": (failing(lambda self, x: self.fc(self.fc(x)), fc=nn.Linear(4, 4)),
               r"'fc' \(Linear\).*used once"),
    "mixed samples": (failing(lambda self, x: x.view(-1)), "samples must|samples of"),
    "samples first": (failing(lambda self, x: x.permute(1, 0)), "samples must stay"),
    "dropout": (failing(lambda self, x: F.dropout(x)), "training=self.training"),
    "padding mode": (lambda: from_torch(nn.Conv2d(3, 4, 3, 1, 1, padding_mode="reflect"), IMAGE),
                     "padding_mode must be 'zeros'"),
    "ceiling": (lambda: from_torch(chain(nn.MaxPool2d(2, ceil_mode=True)), (3, 5, 5)), "ceil_mode"),
    "statistics": (lambda: from_torch(chain(nn.BatchNorm1d(4, track_running_stats=False)), (4,)),
                   "running statistics"),
    "half": (lambda: from_torch(nn.Linear(4, 3).half()), r"torch.float16.*module.float\(\)"),
    "bfloat16": (lambda: from_torch(nn.Linear(4, 3).bfloat16()), r"torch.bfloat16"),
    "meta": (lambda: from_torch(nn.Linear(4, 3, device="meta")), "meta device"),
    "own forward": (lambda: from_torch(chain(Scaled(4, 3)), (4,)), r"'linear' in module '0'"),
    "hook": (hooked, "hook"),
    "torch.nn.utils.prune": (masked, "prune.remove"),
    "parametrization": (parametrized, "remove_parametrizations"),
    "no zeros": (lambda: keep_zeros(nn.Linear(4, 3)), "must have weights that are zero"),
    "other layers": (lambda: to_torch(nn.Linear(4, 3), Network([Dense(np.ones((4, 3)))])),
                     "must have the layers of the module, but 'linear' has weights of shape"),
    "other inputs": (lambda: to_torch(nn.Linear(4, 3), from_torch(nn.Linear(5, 3))),
                     r"network must be the one of this module.*'linear'.*\(4,\), but gets \(5,\)"),
    "no network": (lambda: to_torch(nn.Linear(4, 3), 3), "network must be a Network, but was a"),
    "intercept": (lambda: to_torch(nn.Linear(4, 3, bias=False),
                                   Network([Dense(np.ones((4, 3)), np.ones(3), name="linear")])),
                  "has an intercept"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused(what):
    make, message = BAD[what]
    with pytest.raises(NettrimError) as caught:
        make()
    assert re.search(message, str(caught.value)), str(caught.value)


def test_a_module_stays_as_it_was_if_the_network_is_another_ones():
    module = chain(nn.Linear(4, 3), nn.ReLU())
    network = from_torch(chain(nn.Linear(4, 3), nn.Tanh()))
    before = module[0].weight.detach().clone()
    with pytest.raises(ProblemError, match="outputs differ"):
        to_torch(module, network, inplace=True)
    assert torch.equal(module[0].weight, before)


def test_the_eight_lines_of_the_docstring():
    code = torch_page.__doc__.partition("::\n")[2].partition("PyTorch itself")[0]
    lines = [line.strip() for line in code.splitlines() if line.strip()]
    assert len(lines) <= 8
    torch.manual_seed(0)
    model = chain(nn.Conv2d(1, 2, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    tuned = []
    names = {"model": model, "loader": [torch.randn(50, 1, 28, 28)], "fine_tune": tuned.append}
    exec("\n".join(lines), names)
    assert tuned == [names["pruned"]] and (names["pruned"][3].weight == 0).any()


def test_the_code_of_the_page_on_frameworks():
    page = (Path(__file__).parents[1] / "docs" / "frameworks.md").read_text()
    section = page.partition("\n## PyTorch\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```py\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block, names)
    assert (names["pruned"][4].weight == 0).any() and (names["sparse"].scores.weight == 0).any()


# Weights that are computed of other parameters ---------------------------------------------------


def _weight_norm(part):
    nn.utils.weight_norm(part)


def _spectral_norm(part):
    nn.utils.spectral_norm(part)


def _parametrized(part):
    nn.utils.parametrizations.weight_norm(part)


def _pruned(part):
    from torch.nn.utils import prune

    prune.l1_unstructured(part, "weight", 0.5)


def _pruned_intercept(part):
    from torch.nn.utils import prune

    prune.l1_unstructured(part, "bias", 0.5)


COMPUTED = [_weight_norm, _spectral_norm, _parametrized, _pruned, _pruned_intercept]


def computed_weights(change, kind):
    torch.manual_seed(0)
    first = nn.Linear(4, 6) if kind == "Linear" else nn.Conv2d(2, 6, 2)
    module = chain(first, nn.ReLU(), nn.Flatten(), nn.Linear(6, 3))
    change(module[0])
    module.eval()
    return module, (4,) if kind == "Linear" else (2, 2, 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("kind", ["Linear", "Conv2d"])
@pytest.mark.parametrize("change", COMPUTED)
def test_weights_that_are_computed_are_made_plain_or_left_alone(change, kind, forward):
    module, shape = computed_weights(change, kind)
    X = np.random.default_rng(0).standard_normal((20, *shape)).astype("f")
    with torch.no_grad():
        expected = module(torch.tensor(X)).numpy()
    if forward:
        module(torch.tensor(X))  # Leaves tensors behind that are part of a gradient.
    with pytest.raises(NettrimError, match="must be plain parameters: first call") as caught:
        from_torch(module, shape)
    # The other ways out: what is left alone is computed as before, and the rest is pruned.
    for settings in ({"record": True}, {"opaque": ["0"]}):
        network = from_torch(module, shape, **settings)
        assert [layer.name for layer in network.layers] == ["3"]
        np.testing.assert_allclose(network(X), expected, atol=1e-5)
        pruned = prune(network, X, steps="magnitude", sparsity=0.5).network
        written = to_torch(module, pruned)
        with torch.no_grad():
            np.testing.assert_allclose(written(torch.tensor(X)).numpy(), pruned(X), atol=1e-5)
    # The call that the message names.
    eval(re.search(r"first call ([\w.]+\(part, '\w+'\))", str(caught.value))[1],
         {"torch": torch, "part": module[0]})  # fmt: skip
    network = from_torch(module, shape)
    np.testing.assert_allclose(network(X), expected, atol=1e-5)
    pruned = prune(network, X, steps="magnitude", sparsity=0.5).network
    with torch.no_grad():
        found = to_torch(module, pruned)(torch.tensor(X)).numpy()
    np.testing.assert_allclose(found, pruned(X), atol=1e-5)


def test_wrappers_say_what_they_hold():
    module = nn.DataParallel(chain(nn.Linear(4, 3)))
    with pytest.raises(NettrimError, match="give what DataParallel holds, module.module"):
        from_torch(module, (4,))
    assert from_torch(module.module, (4,)).layers


class Through(nn.Module):
    """A function of a tensor, without parameters."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("settings", [{"opaque": ["Through"]}, {"record": True}])
@pytest.mark.parametrize("function", [torch.log, torch.sqrt, torch.acos, torch.acosh])
def test_parts_that_take_no_negative_numbers_are_checked_on_others(function, settings, place):
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(4) * 0.9)
        linear.bias.zero_()
    through = Through(function)
    module = chain(through, linear) if place == "first" else chain(linear, through)
    if function is torch.acosh and place == "last":
        with torch.no_grad():
            linear.bias.fill_(0.2)
    network = from_torch(module, (4,), **settings)
    changed = network.replace(
        {network.layers[0].name: (np.eye(4) * 0.8, linear.bias.detach().numpy())}
    )
    found = to_torch(module, changed)
    assert float(found[1 if place == "first" else 0].weight.detach()[0, 0]) == np.float32(0.8)
    # A network of another module is still told from this one.
    other = chain(*(nn.Linear(4, 4) if part is linear else Through(torch.exp) for part in module))
    with pytest.raises(NettrimError, match="differ"):
        to_torch(other, changed)


def test_a_part_without_any_finite_output_is_named_as_such():
    module = chain(nn.Linear(4, 4), Through(lambda x: torch.log(-x.abs() - 1)))
    for settings in ({"opaque": ["Through"]}, {"record": True}):
        with pytest.raises(NettrimError, match="must give finite outputs"):
            from_torch(module, (4,), **settings)


def test_a_part_in_half_precision_is_left_alone_and_compared_with_its_own_rounding():
    class Half(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.linear = nn.Linear(5, 5).to(dtype)

        def forward(self, x):
            return self.linear(x.to(self.linear.weight.dtype)).float()

    for dtype in (torch.float16, torch.bfloat16):
        torch.manual_seed(0)
        module = chain(nn.Linear(4, 5), Half(dtype), nn.Linear(5, 3))
        for settings in ({"opaque": ["Half"]}, {"record": True}):
            network = from_torch(module, (4,), **settings)
            assert [layer.name for layer in network.layers] == ["0", "2"]
            assert network.unpruned.keys() & {"1.linear"}
            X = np.random.default_rng(0).standard_normal((30, 4)).astype("f")
            pruned = prune(network, X, steps="magnitude", sparsity=0.5).network
            to_torch(module, pruned)
            with pytest.raises(NettrimError, match="differ by"):
                to_torch(chain(*(nn.Linear(4, 5), Half(dtype), nn.Linear(5, 3))), network)


def test_weights_that_stay_are_listed_with_their_size():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory, self.last = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 2)
            self.start = nn.Parameter(torch.zeros(1, 5))

        def forward(self, x):
            return self.last(self.memory(x + self.start)[0][:, -1])

    network = from_torch(Recurrent(), (7, 5), record=True)
    changed = network.replace({"last": (0 * network.layers[0].W, None)})
    assert network.unpruned == {"memory": (4 * 8 * (5 + 8), 0), "start": (5, 5)}
    assert (changed.n_weights, changed.sparsity) == (16, 1.0)
    assert "LSTM is not among" in network.output.left["memory"]
    assert "Parameter" in network.output.left["start"]
    lines = changed.summary().splitlines()
    assert lines[-1].split() == ["with", "these", str(16 + 416 + 5), f"{100 * 21 / 437:.1f}"]
    assert [line.split()[-2:] for line in lines[-3:-1]] == [["5", "100.0"], ["416", "0.0"]] or [
        line.split()[-2:] for line in lines[-3:-1]
    ] == [["416", "0.0"], ["5", "100.0"]]

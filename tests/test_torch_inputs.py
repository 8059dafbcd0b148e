"""PyTorch: modules that look up integers, and modules that take several inputs."""

import re
import warnings

import numpy as np
import pytest

from nettrim_solver.exceptions import NettrimError, ProblemError
from nettrim_solver.frameworks import (
    calibration_batches,
    fine_tune,
    from_npz,
    from_torch,
    join_inputs,
    to_npz,
    to_torch,
)

from .helpers import prune
from .tolerances import TOLERANCE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
N = 80


class Words(nn.Module):
    """Token ids looked up, a layer on every word, and a mean."""

    def __init__(self):
        super().__init__()
        self.table, self.word = nn.Embedding(30, 6, padding_idx=0), nn.Linear(6, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, ids):
        return self.last(torch.relu(self.word(self.table(ids))).mean(1))


class Inside(nn.Module):
    """A part without layers that looks up sums of its inputs, and cannot be traced."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(60, 6)

    def forward(self, ids):
        return self.table(ids + ids.flip(1)) if ids.max() < 60 else None


class Mixed(nn.Module):
    """An image, numbers, and two categories."""

    def __init__(self):
        super().__init__()
        self.conv, self.numbers = nn.Conv2d(1, 4, 3), nn.Linear(5, 6)
        self.kinds, self.last = nn.Embedding(9, 3), nn.Linear(76, 3)

    def forward(self, image, numbers, kinds, unused=None):
        parts = [self.conv(image).relu().flatten(1), torch.tanh(self.numbers(numbers))]
        return self.last(torch.cat([*parts, self.kinds(kinds).flatten(1)], dim=1))


class Masked(nn.Module):
    """A transformer layer whose mask is of booleans, which numbers would not be."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(30, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids, mask):
        signal = self.encoder(self.table(ids), src_key_padding_mask=mask)
        return self.last((signal * ~mask[:, :, None]).sum(1))


def made(kind):
    """Return a module, and inputs for it."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)

    def ids(rows, length):
        return torch.randint(0, rows, (N, length), generator=generator)

    inputs = {
        Words: lambda: (ids(30, 5),),
        Mixed: lambda: (torch.randn(N, 1, 6, 6), torch.randn(N, 5), ids(9, 2)),
        Masked: lambda: (ids(30, 6), torch.arange(6)[None] >= 1 + ids(6, 1)),
    }[kind]()
    return kind().eval(), inputs


def assert_pruned(module, network, inputs):
    """Raise unless the network is pruned, and the module computes the same with its weights."""
    X = join_inputs(*inputs) if len(inputs) > 1 else inputs[0].numpy()
    with torch.no_grad():
        expected = module(*inputs).numpy()
    np.testing.assert_allclose(network(X), expected, rtol=0, atol=TOLERANCE["recorded"])
    result = prune(network, X, steps="alps", sparsity=0.5)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    pruned = to_torch(module, result.network)
    with torch.no_grad():
        found = pruned(*inputs).numpy()
    np.testing.assert_allclose(found, result.network(X), rtol=0, atol=TOLERANCE["recorded"])
    assert np.abs(found - expected).max() > 100 * TOLERANCE["recorded"]
    for key, value in pruned.state_dict().items():
        name = key.rpartition(".")[0]
        layers = {layer.name for layer in network.layers}
        assert name in layers or torch.equal(value, state[key])
    for layer in result.network.layers:
        zeros = int((pruned.get_submodule(layer.name).weight == 0).sum())
        assert zeros == layer.W.size - layer.nnz >= 0.4 * layer.W.size


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("kind", [Words, Mixed])
def test_modules_are_pruned_whatever_they_take(kind, record):
    module, inputs = made(kind)
    network = from_torch(module, example=inputs, record=record)
    assert_pruned(module, network, inputs)
    # Parts have the names of the arguments, unless modules have them.
    if kind is Mixed and not record:
        names = [op.name for op in network.operations[:3]]
        assert names == ["image", "numbers.input", "kinds.input"]


def test_a_mask_of_booleans_is_given_as_such():
    module, inputs = made(Masked)
    network = from_torch(module, example=inputs, record=True)
    assert len(network.layers) == 3
    assert_pruned(module, network, inputs)


def test_ids_need_no_example_where_a_table_takes_them(tmp_path):
    module, (ids,) = made(Words)
    network = from_torch(module, (5,))
    assert network.shapes["table"] == (5, 6)
    assert_pruned(module, network, (ids,))
    to_npz(network, tmp_path / "words.npz")  # Nothing in it needs PyTorch.
    np.testing.assert_array_equal(from_npz(tmp_path / "words.npz")(ids), network(ids))


def test_a_part_left_to_pytorch_may_take_ids():
    module, ids = (
        nn.Sequential(Inside(), nn.Linear(6, 4), nn.Flatten()),
        torch.randint(0, 30, (N, 5)),
    )
    network = from_torch(module, (5,), opaque=["Inside"])
    assert_pruned(module, network, (ids,))


class Fields(nn.Module):
    """Two categories side by side, with rows of their own in one table."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(12, 3), nn.Linear(6, 2)
        self.register_buffer("first", torch.tensor([0, 5]))

    def forward(self, a, b):
        return self.last(torch.flatten(self.table(torch.cat([a, b], 1) + self.first), 1))


def test_ids_may_be_put_together_and_moved_before_they_are_looked_up():
    module, inputs = Fields(), (torch.randint(0, 5, (N, 1)), torch.randint(0, 7, (N, 1)))
    assert_pruned(module, from_torch(module, example=inputs), inputs)


class Hashed(nn.Module):
    """Numbers of any size, in a table by their remainders; cannot be traced."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(11, 3), nn.Linear(6, 2)

    def forward(self, ids):
        if ids.min() < 0:
            raise ValueError("ids")
        return self.last(torch.flatten(self.table(ids % 11), 1))


def test_integers_are_given_to_a_module_as_they_are_or_refused():
    module, ids = Hashed(), torch.randint(2**30, 2**40, (N, 2))
    network = from_torch(module, example=torch.randint(0, 99, (9, 2)), record=True)
    expected = module(ids).detach().numpy()
    found = network(ids.numpy().astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE["recorded"])
    with pytest.raises(ProblemError, match="float32 may have rounded: give samples in float64"):
        network(ids.numpy())
    for wrong in (0.5, np.nan):
        with pytest.raises(ProblemError, match=f"input 0 .* whole numbers, but gets {wrong}$"):
            network(np.full((3, 2), wrong))


def test_loaders_give_several_inputs():
    _, inputs = made(Mixed)
    data = torch.utils.data.TensorDataset(*inputs, torch.arange(N))
    loader = torch.utils.data.DataLoader(data, 30)
    keyed = [{"numbers": inputs[1], "image": inputs[0], "kinds": inputs[2]}]
    expected = join_inputs(*inputs)
    assert expected.dtype == np.float32 and expected.shape == (N, 43)
    for batches in (
        calibration_batches(loader, inputs=3),
        calibration_batches(loader, inputs=np.int64(3)),
        calibration_batches(loader, inputs=[0, 1, 2]),
        calibration_batches(loader, inputs=(place for place in range(3))),
        calibration_batches(keyed, inputs=["image", "numbers", "kinds"]),
    ):
        np.testing.assert_array_equal(np.concatenate(list(batches)), expected)
    (kinds,) = calibration_batches(keyed, inputs=["kinds"])
    np.testing.assert_array_equal(kinds, inputs[2])


def test_modules_with_several_inputs_are_trained_further():
    module, inputs = made(Mixed)
    network = from_torch(module, example=inputs)
    X = join_inputs(*inputs)
    pruned = to_torch(module, prune(network, X, steps="alps", sparsity=0.5).network)
    zeros = pruned.last.weight == 0
    data = torch.utils.data.TensorDataset(*inputs, torch.arange(N) % 3)
    losses = fine_tune(pruned, torch.utils.data.DataLoader(data, 20), epochs=4, lr=0.01)
    assert losses[-1] < losses[0]
    assert zeros.any() and torch.all(pruned.last.weight[zeros] == 0)


def failing(loader, inputs):
    return lambda: list(calibration_batches(loader, inputs))


def reading(kind, take, **more):
    module, inputs = made(kind)
    return lambda: from_torch(module, example=take(inputs), **more)


BAD = {
    "one of three": (reading(Mixed, lambda given: given[0]),
                     r"\['image', 'numbers', 'kinds', 'unused'\].*example=\(image, numbers"),
    "too many": (reading(Words, lambda given: given * 2), r"take 2 tensors, but takes \['ids'\]"),
    "other sizes": (reading(Mixed, lambda given: (given[0], given[1][:9])), "all with as many"),
    "one sample": (reading(Words, lambda given: given[0][:1]), "at least two samples"),
    "a list": (reading(Words, lambda given: given[0].tolist()), "must be a tensor"),
    "both": (lambda: from_torch(Words(), (5,), example=torch.zeros(3, 5)), "beside input_shape"),
    "recorded without": (lambda: from_torch(Words(), (5,), record=True), "says: .*example="),
    "no integers": (reading(Words, lambda given: given[0] + 0.5), "^input 0 .* whole numbers"),
    "too large": (lambda: prune(from_torch(Words(), (5,)), np.full((9, 5), 30), nnz=9),
                  "whole numbers from 0 to 29, but gets 30"),
    "max_norm": (lambda: from_torch(nn.Embedding(5, 4, max_norm=1.0), (3,)), "max_norm"),
    "tied": (lambda: from_torch(tied(), (3,)), "used once, but are shared"),
    "no such key": (failing([{"a": torch.ones(2, 3)}], ["b"]), "without a tensor 'b'"),
    "too few": (failing([(torch.ones(2, 3),)], 2), "batch 0 .* without a tensor 1"),
    "alone": (failing(torch.ones(2, 3), 2), "batch 0 .*without"),
    "no inputs": (failing([], 0), "inputs must be"),
    "none": (failing([], []), r"places or keys, but was \[\]"),
    "no place": (failing([], None), "places or keys, but was None"),
    "a fraction": (failing([], 1.5), "places or keys, but was 1.5"),
    "one axis": (reading(Words, lambda given: given[0][:, 0]), "must have an axis beside"),
    "not finite": (reading(Words, lambda given: given[0] * np.nan), "example must be finite"),
    "sparse": (reading(Words, lambda given: given[0].to_sparse()), "dense tensors of real numbers"),
    "a key": (failing([], "ids"), "places or keys, but was 'ids'"),
}  # fmt: skip


def tied():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    module[1].weight = module[0].weight
    return module


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused(what):
    make, message = BAD[what]
    with pytest.raises(NettrimError) as caught:
        make()
    assert re.search(message, str(caught.value)), str(caught.value)

"""How accurate are pruned networks before and after fine-tuning, and under noise?

LeNet-300-100, and the paper's 784-300-1000-100-10, which is trained on the spot, are pruned on
1,000 MNIST training images and scored on all 10,000 test images. Then they are fine-tuned, zeros
in place, for a few epochs on all 60,000 training images, and scored again; and with Gaussian noise
on the test images. Beside Net-Trim's pipelines and magnitude pruning at equal zeros stands the
iterative prune-and-retrain of Han et al. Runs are resumed where they were interrupted.

PyTorch must be there (extra ``torch``). Without the data folder (see ``benchmarks/datasets.py``)
only ``--quick`` runs, on the demonstration's digits.

References
----------
Aghasi, Abdi, Romberg, *Fast Convex Pruning of Deep Neural Networks*, arXiv:1806.06457; Han, Pool,
Tran, Dally, *Learning both Weights and Connections for Efficient Neural Networks*, NIPS 2015
(arXiv:1506.02626).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver import Recipe, prune_network
from nettrim_solver.frameworks import from_torch
from nettrim_solver.frameworks.torch_training import fine_tune
from nettrim_solver.frameworks.torch_values import import_torch
from nettrim_solver.network import Activate, Dense, Network
from nettrim_solver.network.allocation import allocate
from nettrim_solver.pipeline import L0, Pipeline, Refit, Reweight, Solve

from . import __main__ as harness
from . import datasets, finetune_report
from .measure import say
from .noise import NoisySamples

IMAGES = 1000
EPOCHS, BATCH, LEARNING_RATE = 4, 256, 1e-3

#: The paper's fully connected network, trained here.
LENET, PAPERS = "LeNet-300-100", "784-300-1000-100-10"
PAPERS_SIZES, PAPERS_EPOCHS = (784, 300, 1000, 100, 10), 10

#: Fractions of zeros by network; published figures are for 80 %, and for those of the paper's.
ZEROS = {LENET: (0.8, 0.9, 0.95, 0.98), PAPERS: (0.88, 0.935, 0.97), "digits": (0.9,)}

#: Below the first budget, Han et al.'s network is pruned to these, and retrained each time.
FIRST_STAGES = (0.5, 0.7, 0.8)


@dataclass(frozen=True)
class Method:
    """What makes a pruned network: the layers' pipeline, and how the zeros are shared out.

    The paper's network, the larger one, is left to the methods that run `everywhere`.
    """

    name: str
    allocation: str = ""
    pipeline: Pipeline | None = None
    output_weights: str = "equal"
    everywhere: bool = False


#: One threshold for all layers, in units of the deviation of a layer's weights.
THRESHOLD = "deviations"

DENSE = Method("dense")
RETRAINED = Method("prune and retrain", THRESHOLD)
METHODS = (
    Method("l0, weighted outputs", "output_error", Pipeline(L0(settings={"damping": 1e-3})),
           "downstream", everywhere=True),
    Method("l0", "output_error", Pipeline(L0())),
    Method("l0", "uniform", Pipeline(L0())),
    Method("magnitude", "output_error", Pipeline(Solve("magnitude")), everywhere=True),
    Method("magnitude", "uniform", Pipeline(Solve("magnitude"))),
    Method("magnitude", THRESHOLD, everywhere=True),
    Method("reweighted l1, refit", "output_error", Pipeline(Reweight(3), Refit())),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Task:
    """A trained network, its data with labels, and training that knows them."""

    data: datasets.Classifier
    y_train: Any

    @cached_property
    def noisy(self) -> NoisySamples:
        """The test samples with noise."""
        return NoisySamples(self.data)

    @cached_property
    def tensors(self) -> tuple[Any, Any]:
        """Training samples in single precision, and their labels."""
        torch = import_torch()
        samples = torch.as_tensor(np.asarray(self.data.X_train, np.float32))
        return samples, torch.as_tensor(np.asarray(self.y_train, np.int64))

    def score(self, network: Network) -> dict[str, Any]:
        """Return the accuracy of a network without and with noise."""
        return {"accuracy": self.data.accuracy(network), "noise": self.noisy.accuracies(network)}

    def trained(self, network: Network, seed: int, epochs: int = EPOCHS) -> Network:
        """Return the network after training, its zeros in place."""
        module = module_of(network)
        batches = Shuffled(*self.tensors, seed=seed)
        fine_tune(module, batches, epochs=epochs, lr=LEARNING_RATE)
        tuned = from_torch(module)
        weights = {op.name: op.W for op in tuned.layers}
        intercepts = {op.name: op.b for op in tuned.layers}
        return network.replace({
            old.name: Dense(weights[new.name], intercepts[new.name], name=old.name)
            for old, new in zip(network.layers, tuned.layers, strict=True)
        })  # fmt: skip


@dataclass
class Shuffled:
    """Batches of samples and labels, in another order each time they are read."""

    samples: Any
    labels: Any
    seed: int
    size: int = BATCH
    _read: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        rng = np.random.default_rng((self.seed, self._read))
        self._read += 1
        order = import_torch().as_tensor(rng.permutation(len(self.labels)))
        for rows in order.split(self.size):
            yield self.samples[rows], self.labels[rows]


def module_of(network: Network) -> Any:
    """Return a chain of dense layers and ReLUs as a PyTorch module in single precision."""
    torch = import_torch()
    parts: list[Any] = []
    for op in network.operations:
        if isinstance(op, Dense):
            part = torch.nn.Linear(op.n_inputs, op.n_outputs)
            with torch.no_grad():
                part.weight.copy_(torch.as_tensor(op.W.T.copy()))
                part.bias.copy_(torch.as_tensor(op.b.copy()))
            parts.append(part)
        elif isinstance(op, Activate) and op.activation.name == "relu":
            parts.append(torch.nn.ReLU())
        else:
            raise ValueError(f"only dense layers and ReLUs are built here, not {op!r}")
    return torch.nn.Sequential(*parts)


# What is pruned ----------------------------------------------------------------------------------


def load(name: str) -> Task:
    """Return a network with its data; the paper's is trained first."""
    if name == "digits":
        from nettrim_solver.demo import load_demo_network

        return Task(datasets.digits(), load_demo_network().y_train)
    data = datasets.lenet()
    with np.load(datasets.data_file("mnist.npz")) as mnist:
        labels = mnist["y_train"]
    lenet = Task(data, labels)
    return lenet if name == data.name else papers_network(lenet)


def papers_network(mnist: Task) -> Task:
    """Return the paper's network, trained from a fixed seed."""
    torch = import_torch()
    torch.manual_seed(0)
    parts: list[Any] = []
    for n, m in zip(PAPERS_SIZES, PAPERS_SIZES[1:], strict=False):
        parts += [torch.nn.Linear(n, m), torch.nn.ReLU()]
    module = torch.nn.Sequential(*parts[:-1])
    fine_tune(module, Shuffled(*mnist.tensors, seed=0), epochs=PAPERS_EPOCHS, lr=LEARNING_RATE)
    data, network = mnist.data, from_torch(module).astype(np.float64)
    return Task(
        datasets.Classifier(PAPERS, network, data.X_train, data.X_test, data.y_test), mnist.y_train
    )


# Pruning -----------------------------------------------------------------------------------------


def by_deviation(network: Network, zeros: float) -> Network:
    """Return the network without the weights that are smallest by their layer's deviation.

    The threshold of a layer is a quality factor times the standard deviation of its weights (of
    those that are left), as in Han et al.; the factor is the one that gives the zeros.
    """
    sizes = [np.abs(op.W) / np.std(op.W[op.W != 0]) for op in network.layers]
    every = np.concatenate([one.ravel() for one in sizes])
    threshold = np.sort(every)[round(zeros * every.size) - 1]
    return network.replace({
        op.name: Dense(np.where(size > threshold, op.W, 0.0), op.b, name=op.name)
        for op, size in zip(network.layers, sizes, strict=True)
    })  # fmt: skip


class Pruner:
    """Prunes one network on one draw of calibration samples; keeps what the methods share."""

    def __init__(self, data: datasets.Classifier, seed: int) -> None:
        self.network, self.X = data.network, data.sample(min(IMAGES, len(data.X_train)), seed)
        self._splits: dict[Any, dict[str, int]] = {}

    def prune(self, method: Method, zeros: float) -> Network:
        """Return the pruned network."""
        recipe = Recipe(steps=method.pipeline, output_weights=method.output_weights)
        return prune_network(
            self.network, self.X, nnz=self._split(method, zeros), recipe=recipe, n_threads=1
        ).network

    def _split(self, method: Method, zeros: float) -> dict[str, int]:
        key = (zeros, method.allocation, method.output_weights)
        if key not in self._splits:
            total = self.network.n_weights - round(zeros * self.network.n_weights)
            self._splits[key] = allocate(
                self.network, self.X, nnz=total, method=method.allocation,
                output_weights=method.output_weights, n_threads=1,
            )  # fmt: skip
        return self._splits[key]


# Trials ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One network, pruned once and fine-tuned; of an iterative method, once for every budget."""

    network: str
    method: Method
    seed: int
    zeros: float | None = None

    @property
    def key(self) -> str:
        """A name for the file of an interrupted run."""
        zeros = "" if self.zeros is None else f"{self.zeros:g}"
        method = self.method
        return f"{self.network} | {method.name} | {method.allocation} | {zeros} | {self.seed}"

    def label(self, zeros: float) -> dict[str, Any]:
        """Return what says which row of the result this is."""
        return {
            "network": self.network, "method": self.method.name,
            "allocation": self.method.allocation, "zeros_asked": zeros, "seed": self.seed,
        }  # fmt: skip


def trials(network: str, n_seeds: int) -> Iterator[Trial]:
    """Yield what is to be run on a network."""
    for seed in range(n_seeds):
        yield Trial(network, DENSE, seed)
        yield Trial(network, RETRAINED, seed)
        methods = [one for one in METHODS if one.everywhere or network != PAPERS]
        for method, zeros in product(methods, ZEROS[network]):
            yield Trial(network, method, seed, zeros)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--network", choices=(LENET, PAPERS), help="only this; a run of all goes on"
    )
    parser.add_argument("--seeds", type=int, default=2, help="draws of images and of batches")
    parser.add_argument(
        "--minutes", type=float, help="begin no trial after so many minutes; the next run goes on"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all trials that are not in an interrupted run's files yet."""
    torch, quick = import_torch(), bool(args.quick)
    torch.set_num_threads(1)
    if not quick:
        datasets.data_file("mnist.npz")
    deadline = None if args.minutes is None else time.perf_counter() + 60 * args.minutes
    names = ["digits"] if quick else [args.network] if args.network else [LENET, PAPERS]
    n_seeds = 1 if quick else args.seeds
    done = {name: run_network(name, n_seeds, deadline) for name in names}
    whole = all(trial.key in done[name] for name in names for trial in trials(name, n_seeds))
    if whole and args.network is None:
        for name in names:
            partial_file(name).unlink(missing_ok=True)
    return {
        "quick": quick, "whole": whole, "images": IMAGES, "epochs": EPOCHS, "batch": BATCH,
        "learning_rate": LEARNING_RATE, "torch": torch.__version__,
        "rows": [
            row
            for name in names
            for trial in trials(name, n_seeds)
            for row in done[name].get(trial.key, [])
        ],
        "published": finetune_report.PUBLISHED,
    }  # fmt: skip


def run_network(name: str, n_seeds: int, deadline: float | None) -> dict[str, list[dict[str, Any]]]:
    """Run the trials of one network; return the rows of each by its key."""
    path = partial_file(name)
    path.parent.mkdir(exist_ok=True)
    rows = _earlier(path)
    missing = [trial for trial in trials(name, n_seeds) if trial.key not in rows]
    task, pruners = None, {}
    for trial in missing:
        if deadline is not None and time.perf_counter() > deadline:
            break
        task = load(name) if task is None else task
        if trial.seed not in pruners:
            pruners[trial.seed] = Pruner(task.data, trial.seed)
        rows[trial.key] = run_trial(trial, task, pruners[trial.seed])
        text = json.dumps(rows)
        harness.write_atomically(path, lambda part, text=text: part.write_text(text))
        _tell(trial, rows[trial.key])
    return rows


def partial_file(name: str) -> Path:
    """Return where the trials of a network are kept until all are done."""
    return harness.RESULTS / f"finetune-{name}.partial.json"


def _tell(trial: Trial, rows: list[dict[str, Any]]) -> None:
    figures = [f"{r['before']['accuracy']:.4f} -> {r['after']['accuracy']:.4f}" for r in rows]
    say(f"{trial.key}: {', '.join(figures)}")


def run_trial(trial: Trial, task: Task, pruner: Pruner) -> list[dict[str, Any]]:
    """Prune and fine-tune as a trial says; return its rows."""
    if trial.method is RETRAINED:
        return prune_and_retrain(trial, task)
    started, network = time.perf_counter(), task.data.network
    if trial.zeros is None:
        pruned = network
    elif trial.method.pipeline is None:
        pruned = by_deviation(network, trial.zeros)
    else:
        pruned = pruner.prune(trial.method, trial.zeros)
    seconds = time.perf_counter() - started
    tuned = task.trained(pruned, trial.seed)
    return [
        trial.label(trial.zeros or 0.0)
        | {"seconds_pruning": seconds, "epochs": EPOCHS}
        | compared(task, pruned, tuned)
    ]


def prune_and_retrain(trial: Trial, task: Task) -> list[dict[str, Any]]:
    """Prune by magnitude and retrain in turn, with ever more zeros; a row for every budget."""
    network, rows, epochs = task.data.network, [], 0
    budgets = ZEROS[task.data.name]
    for zeros in (*(z for z in FIRST_STAGES if z < budgets[0]), *budgets):
        pruned = by_deviation(network, zeros)
        network, epochs = task.trained(pruned, trial.seed), epochs + EPOCHS
        if zeros in budgets:
            rows.append(trial.label(zeros) | {"epochs": epochs} | compared(task, pruned, network))
    return rows


def compared(task: Task, pruned: Network, tuned: Network) -> dict[str, Any]:
    """Return what a network is like before and after its training."""
    return {
        "zeros": tuned.sparsity,
        "split": [layer.sparsity for layer in tuned.layers],
        "before": task.score(pruned),
        "after": task.score(tuned),
    }


def _earlier(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def describe(result: dict[str, Any]) -> str:
    """Return the tables of accuracies, without noise and with it."""
    return finetune_report.markdown(result)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw accuracy over zeros, before and after fine-tuning, and over the noise."""
    finetune_report.plot(result, path)

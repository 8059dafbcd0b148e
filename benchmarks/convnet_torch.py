"""A convolutional network of today's parts in PyTorch: pruned by us, and by PyTorch itself."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from nettrim_solver import prune_network
from nettrim_solver.frameworks import from_torch, keep_zeros, to_torch

from . import datasets
from .measure import clocked, say
from .pages import table

IMAGES, ZEROS, METHODS = 1000, (0.8, 0.9), ("best", "torch, global", "torch, by layer")

#: Training images, epochs, and images of a batch; one epoch more fine-tunes what is pruned.
TRAINING, EPOCHS, BATCH = 20_000, 3, 64

#: CPU seconds that "best" may take on one core.
SECONDS = 60.0


def make_model() -> Any:
    """Return the untrained network: batch normalisation, a residual block, depthwise and 1 x 1."""
    from torch import nn

    class Residual(nn.Module):
        """Two convolutions beside a shortcut."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(channels)
            self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.other_norm = nn.BatchNorm2d(channels)

        def forward(self, x: Any) -> Any:
            inner = self.norm(self.first(x)).relu()
            return (self.other_norm(self.second(inner)) + x).relu()

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.MaxPool2d(2),
        Residual(32),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(288, 10),
    )  # fmt: skip


def train(model: Any, X: Any, y: Any, epochs: int, rate: float, seed: int) -> None:
    """Train by Adam on the labels; zeros that are kept stay zero."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(X) // BATCH + 1)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(X), generator=generator).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()
            decay.step()
    model.eval()


def accuracy(model: Any, X: Any, y: Any) -> float:
    """Return the share of right answers."""
    import torch

    with torch.no_grad():
        return float(
            (torch.cat([model(part) for part in X.split(1000)]).argmax(1) == y).float().mean()
        )


def compare_with_torch(quick: bool) -> list[dict[str, Any]]:
    """Return a row for every method and share of zeros, and one for the trained network."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = datasets.mnist_images()
    n = 1000 if quick else TRAINING
    X, y = torch.from_numpy(images["x_train"][:n]), torch.from_numpy(images["y_train"][:n]).long()
    X_test, y_test = torch.from_numpy(images["x_test"]), torch.from_numpy(images["y_test"]).long()
    model = make_model()
    train(model, X, y, 1 if quick else EPOCHS, 2e-3, seed=0)
    rows = [{"method": "trained", "zeros": 0.0, "before": accuracy(model, X_test, y_test)}]
    calibration = images["x_train"][n : n + (100 if quick else IMAGES)]
    for zeros in ZEROS[:1] if quick else ZEROS:
        for method in METHODS:
            (pruned, sparsity), spent = clocked(
                lambda method=method, zeros=zeros: _pruned(model, method, zeros, calibration)
            )
            row = {
                "method": method, "zeros": sparsity, "zeros_asked": zeros,
                "before": accuracy(pruned, X_test, y_test), "cpu_seconds": spent.cpu_seconds,
            }  # fmt: skip
            with keep_zeros(pruned):
                train(pruned, X, y, 1, 5e-4, seed=1)
            row["after"] = accuracy(pruned, X_test, y_test)
            rows.append(row)
            say(f"torch network, {method}, {zeros:g}: {row['before']:.4f}, {row['after']:.4f}")
    return rows


def _pruned(model: Any, method: str, zeros: float, calibration: Any) -> tuple[Any, float]:
    """Return a pruned copy of the model, and the zeros of its convolutions and dense layers."""
    from torch import nn
    from torch.nn.utils import prune

    if method == "best":
        network = from_torch(model, input_shape=(1, 28, 28))
        result = prune_network(network, calibration, sparsity=zeros, n_threads=1)
        return to_torch(model, result.network), result.sparsity
    pruned = copy.deepcopy(model)
    layers = [one for one in pruned.modules() if isinstance(one, (nn.Conv2d, nn.Linear))]
    if method == "torch, global":
        prune.global_unstructured(
            [(one, "weight") for one in layers], prune.L1Unstructured, amount=zeros
        )
    else:
        for one in layers:
            prune.l1_unstructured(one, "weight", amount=zeros)
    for one in layers:
        prune.remove(one, "weight")
    weights = np.concatenate([one.weight.detach().numpy().ravel() for one in layers])
    return pruned, float(np.mean(weights == 0))


def verdicts_of_torch(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return whether "best" is above both of PyTorch's, before and after, and within its time."""
    found = []
    for zeros in ZEROS:
        at = {row["method"]: row for row in rows if row.get("zeros_asked") == zeros}
        if len(at) < len(METHODS):
            continue
        best, others = at["best"], [at[name] for name in METHODS[1:]]
        for when in ("before", "after"):
            rival = max(row[when] for row in others)
            found.append({
                "what": f"best above torch's l1, {zeros:g} zeros, {when} an epoch of fine-tuning",
                "wanted": rival, "mean": best[when], "spread": 0.0, "runs": 1,
                "met": best[when] > rival,
            })  # fmt: skip
        found.append({
            "what": f"CPU seconds of best on the PyTorch network, {zeros:g} zeros",
            "wanted": SECONDS, "mean": best["cpu_seconds"], "spread": 0.0, "runs": 1,
            "met": best["cpu_seconds"] <= SECONDS,
        })  # fmt: skip
    return found


def describe_torch(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table."""
    if not rows:
        return ["the PyTorch network was not run: PyTorch is not installed", ""]
    body = [
        [row["method"], f"{row['zeros']:.3f}", f"{row['before']:.4f}",
         f"{row['after']:.4f}" if "after" in row else "",
         f"{row['cpu_seconds']:.1f}" if "cpu_seconds" in row else ""]
        for row in rows
    ]  # fmt: skip
    head = ["method", "zeros", "accuracy", "after one epoch", "CPU s"]
    return ["batch normalisation, residual block, depthwise and 1 x 1 convolutions (PyTorch)", "",
            *table(head, body), ""]  # fmt: skip

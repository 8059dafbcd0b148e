"""Train the network that ``nettrim demo`` prunes, and write it with its data into the package.

    python -m benchmarks.train_digits_mlp [PATH]

An MLP of two hidden layers on the UCI digits that scikit-learn bundles (pixels / 16). Seed and
split are fixed; the held-out accuracy is that of the float32 weights as stored.

References
----------
E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning
Repository, 1998.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver.frameworks import from_npz

TARGET = Path(__file__).resolve().parent.parent / "nettrim_solver" / "data" / "digits_mlp.npz"
SEED = 0
HIDDEN = (256, 128)
N_TEST = 500
SETTINGS: dict[str, Any] = {
    "alpha": 1e-3,
    "batch_size": 64,
    "learning_rate_init": 1e-3,
    "max_iter": 60,
    "tol": 0.0,
    "n_iter_no_change": 60,
}


def train() -> dict[str, Any]:
    """Return the arrays of the file: weights, data, and the metadata as a JSON string."""
    import sklearn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    digits = load_digits()
    pixels, labels = digits.data.astype(np.uint8), digits.target.astype(np.uint8)
    X_train, X_test, y_train, y_test = train_test_split(
        pixels, labels, test_size=N_TEST, stratify=labels, random_state=SEED
    )
    network = MLPClassifier(hidden_layer_sizes=HIDDEN, random_state=SEED, **SETTINGS)
    network.fit(X_train / 16.0, y_train)
    arrays: dict[str, Any] = {f"W{i}": W.astype(np.float32) for i, W in enumerate(network.coefs_)}
    arrays |= {f"b{i}": b.astype(np.float32) for i, b in enumerate(network.intercepts_)}
    outputs = from_npz(arrays)(X_test.astype(np.float32) / np.float32(16))
    metadata = {
        "data": "UCI digits of scikit-learn, pixels 0..16, divided by 16",
        "activation": "relu, identity in the last layer",
        "seed": SEED,
        "settings": SETTINGS | {"hidden_layer_sizes": HIDDEN},
        "test_accuracy": float(np.mean(outputs.argmax(axis=1) == y_test)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "command": "python -m benchmarks.train_digits_mlp",
    }
    arrays |= {"X_train": X_train, "y_train": y_train, "X_test": X_test, "y_test": y_test}
    return arrays | {"metadata": np.array(json.dumps(metadata))}


def main(path: str | os.PathLike[str] = TARGET) -> None:
    """Train, write the file (compressed, all or nothing), and say what it holds."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    arrays = train()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            np.savez_compressed(stream, **arrays)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB, {arrays['metadata']}")


if __name__ == "__main__":
    main(*sys.argv[1:2])

"""Finished layers on disk, so that no interruption loses them.

A folder holds ``run.json``, the fingerprint of the run (sha256 of weights and calibration data, the
settings in words, and the versions of what computes), and one ``.npz`` file per finished layer. All
are written atomically: a run that is killed at any point leaves whole files, and the same call goes
on behind them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ..activations import Activation
from ..exceptions import ProblemError
from ..problem_file import load_arrays, save_arrays, whole_file
from .calibration import Calibration
from .choices import LayerSettings
from .graph import Network

FORMAT = "nettrim_solver.checkpoint/1"
WHAT = "a finished layer of a checkpoint"
RUN_FILE = "run.json"

#: Changes since an earlier run that a message lists.
MOST_CHANGES = 4

#: What a run writes of a layer: weights, intercept, and the report's fields.
Finished = tuple[NDArray[Any], NDArray[Any] | None, dict[str, Any]]


class Checkpoint:
    """The folder of one run.

    Parameters
    ----------
    folder : path
        Made if it is missing.
    parts : mapping of str to str
        What the run depends on, see :func:`fingerprint_parts`.

    Raises
    ------
    ProblemError
        If nothing can be written there, or if the folder belongs to a run that differs; the message
        says in what.
    """

    def __init__(self, folder: str | os.PathLike[str], parts: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self.digest = hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()
        content = {"format": FORMAT, "fingerprint": self.digest, "parts": dict(parts)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_same(parts)
            # Written anew each time: a folder that has become read-only is found out here.
            with whole_file(self.folder / RUN_FILE) as stream:
                stream.write(json.dumps(content, indent=1, sort_keys=True).encode())
        except OSError as error:
            raise ProblemError(
                f"checkpoint must be a folder that can be written to, but was {str(folder)!r}: "
                f"{error.strerror or error}"
            ) from None

    def _check_same(self, parts: Mapping[str, str]) -> None:
        """Raise if the folder belongs to a run with another fingerprint."""
        path = self.folder / RUN_FILE
        try:
            old = json.loads(path.read_text())
            before = {str(name): str(value) for name, value in old["parts"].items()}
            known = old["format"] == FORMAT
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ProblemError(
                f"checkpoint: {path} cannot be read ({error}); use another folder"
            ) from None
        if not known:
            raise ProblemError(
                f"checkpoint: {path} is of the format {old['format']!r}, but this version reads "
                f"{FORMAT!r}; use another folder"
            )
        changes = [
            f"{name} (was {_short(before.get(name))}, is {_short(parts.get(name))})"
            for name in dict.fromkeys([*before, *parts])
            if before.get(name) != parts.get(name)
        ]
        if changes:
            more = len(changes) - MOST_CHANGES
            listed = "; ".join(changes[:MOST_CHANGES]) + (f"; and {more} more" if more > 0 else "")
            raise ProblemError(
                f"checkpoint {str(self.folder)!r} belongs to another run; what changed: {listed}. "
                "Use another folder, or call with what was given then"
            )

    def load(self, name: str) -> Finished | None:
        """Return a finished layer, or None if there is none.

        Raises
        ------
        ProblemFileError
            If its file is damaged.
        ProblemError
            If the file belongs to another run.
        """
        path = self._path(name)
        if not path.exists():
            return None
        arrays = load_arrays(path, WHAT)
        try:
            record = json.loads(str(arrays["record"][()]))
            same = str(arrays["fingerprint"][()]) == self.digest and record["name"] == name
            finished = arrays["W"], arrays.get("b"), record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProblemError(f"checkpoint: {path} is not {WHAT} ({error}); delete it") from None
        if not same:
            raise ProblemError(f"checkpoint: {path} belongs to another run; delete it")
        return finished

    def save(self, name: str, W: NDArray[Any], b: NDArray[Any] | None, record: Any) -> None:
        """Write a finished layer, all or nothing.

        Raises
        ------
        ProblemError
            If it cannot be written.
        """
        arrays: dict[str, Any] = {"W": W} if b is None else {"W": W, "b": b}
        arrays["record"] = np.array(json.dumps(record))
        arrays["fingerprint"] = np.array(self.digest)
        try:
            save_arrays(self._path(name), arrays)
        except OSError as error:
            raise ProblemError(
                f"checkpoint: layer {name!r} cannot be written to {str(self.folder)!r}: "
                f"{error.strerror or error}"
            ) from None

    def _path(self, name: str) -> Path:
        readable = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:60]
        number = hashlib.sha256(name.encode()).hexdigest()[:8]
        return self.folder / f"layer-{readable}-{number}.npz"


def fingerprint_parts(
    network: Network,
    data: Calibration,
    choices: Mapping[str, LayerSettings],
    **settings: Any,
) -> dict[str, str]:
    """Return what a run depends on: hashes of arrays, settings in words.

    Threads, time limits, callbacks and held-out samples are no part of it: they change no weights
    of a finished layer, but for rounding with another number of threads. A pipeline counts with its
    repr, or with its name if that holds an address. Versions count, so that no network is made of
    layers that two of them computed.

    Returns
    -------
    dict of str to str
    """
    parts = {
        "weights": hash_network(network),
        "calibration data": hash_data(data),
        **versions(),
        **{name: in_words(value) for name, value in settings.items()},
    }
    others = {id(one): one for one in (choice.output_weights for choice in choices.values())}
    # One network for all layers is hashed once.
    hashed = {key: in_words(one) for key, one in others.items()}
    for name, choice in choices.items():
        for field in dataclasses.fields(choice):
            value = getattr(choice, field.name)
            parts[f"{field.name} of layer {name!r}"] = hashed.get(id(value)) or in_words(value)
    return parts


def versions() -> dict[str, str]:
    """Return the versions of this package, of numpy and scipy, and of the BLAS of each."""
    package = sys.modules[__name__.partition(".")[0]]
    found = {
        "version of nettrim_solver": str(package.__version__),
        "version of numpy": np.__version__,
        "version of scipy": scipy.__version__,
    }
    for name, library in (("numpy", np), ("scipy", scipy)):
        # What it was built with: the libraries that are loaded depend on what else was imported.
        built = library.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
        found[f"BLAS of {name}"] = f"{built.get('name')} {built.get('version')}"
    return found


def hash_network(network: Network) -> str:
    """Return the sha256 of a network: its operations, their parameters and connections."""
    digest = hashlib.sha256(repr(network.input_shape).encode())
    for op in network.operations:
        digest.update(f"|{type(op).__name__}".encode())
        for field in dataclasses.fields(op):
            digest.update(f";{field.name}=".encode())
            value = getattr(op, field.name)
            if isinstance(value, np.ndarray):
                _update(digest, value)
            elif isinstance(value, Activation):
                digest.update(f"{value.name}{sorted(value.parameters().items())}".encode())
            else:
                digest.update(repr(value).encode())
    return digest.hexdigest()


def hash_data(data: Calibration) -> str:
    """Return the sha256 of samples, whatever batches they come in."""
    digest = hashlib.sha256(f"{len(data)}{data.sample_shape}{data.dtype.str}".encode())
    for batch in data.batches():
        digest.update(np.ascontiguousarray(batch).data)
    return digest.hexdigest()


def _update(digest: Any, array: NDArray[Any]) -> None:
    digest.update(f"{array.shape}{array.dtype.str}".encode())
    digest.update(np.ascontiguousarray(array).data)


def in_words(value: Any) -> str:
    """Return a setting in words that are the same in every process; arrays, networks by a hash."""
    if isinstance(value, Network):
        return f"network {hash_network(value)}"
    if callable(value):
        words = repr(value)
        if " at 0x" in words:
            kind = value if hasattr(value, "__qualname__") else type(value)
            return f"{kind.__module__}.{kind.__qualname__}"
        return words
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {in_words(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256()
        _update(digest, value)
        return f"array {digest.hexdigest()}"
    if isinstance(value, np.generic):
        value = value.item()
    return repr(value)


def _short(words: str | None) -> str:
    if words is None:
        return "nothing"
    return words if len(words) <= 40 else words[:12] + "..."

"""Mutated sparse files: whatever they hold, they are read as a network or refused as ours."""

import json

import numpy as np
import pytest

from nettrim_solver.exceptions import NettrimError
from nettrim_solver.network import Activate, Conv2d, Dense, Flatten, Network
from nettrim_solver.storage import load_sparse, save_sparse

WORDS = [None, True, -1, 0, 1, 3, 7.5, 1e300, 10**30, "", "csr", "dense", "W0", [], {}, [4], [2, 3]]
DTYPES = ["u1", "u2", "i8", "f2", "f4", "f8", ">f4", "c8", "U3", "S2", "?", "M8[s]"]


def good_files(folder):
    """One small network in every format."""
    rng = np.random.default_rng(4)
    filters, W = rng.standard_normal((2, 1, 3, 3)), rng.standard_normal((8, 3))
    filters[rng.random(filters.shape) < 0.6] = 0
    W[rng.random(W.shape) < 0.6] = 0
    network = Network(
        [
            Conv2d(filters.astype("f"), np.ones(2)),
            Activate("relu"),
            Flatten(),
            Dense(W, np.ones(3)),
        ],
        (1, 4, 4),
    )
    paths = []
    for name in ("bitmask", "csr", "relative"):
        paths.append(folder / f"{name}.npz")
        save_sparse(paths[-1], network, name)
    return paths


def mutate_bytes(content, rng):
    """Change, cut, repeat or swap bytes of a file."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        start, end = sorted(rng.integers(0, len(content) + 1, 2))
        kind = rng.integers(5)
        if kind == 0:
            del content[start : min(end, start + 64)]
        elif kind == 1:
            content[start:start] = content[start : min(end, start + 64)]
        elif kind == 2:
            content = content[: max(1, end)]
        elif len(content):
            content[rng.integers(len(content))] = rng.integers(256)
        content = content or bytearray(b"P")
    return bytes(content)


def mutate_text(text, rng):
    """Change one value of a JSON text, wherever it is nested."""
    content = json.loads(text)
    places = []

    def visit(node):
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                visit(node[key])

    visit(content)
    node, key = places[rng.integers(len(places))]
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = WORDS[rng.integers(len(WORDS))]
    return json.dumps(content)


def mutate_arrays(arrays, rng):
    """Change arrays of a file whose checksums will be right."""
    arrays = dict(arrays)
    for _ in range(rng.integers(1, 3)):
        names = [*arrays]
        name = names[rng.integers(len(names))]
        array = arrays[name]
        kind = rng.integers(6)
        if name in ("network", "sparse") and kind != 0:
            try:
                arrays[name] = np.array(mutate_text(str(array), rng))
            except ValueError:  # mutated before, and no text any more
                del arrays[name]
        elif kind == 0:
            del arrays[name]
        elif kind == 1:
            with np.errstate(all="ignore"):
                arrays[name] = np.zeros(array.shape, DTYPES[rng.integers(len(DTYPES))])
        elif kind == 2:
            arrays[name] = array[: rng.integers(0, len(array) + 1)] if array.ndim else array[None]
        elif kind == 3:
            arrays[names[rng.integers(len(names))]] = array
        elif array.size:
            changed = array.copy().reshape(-1)
            octets = changed.view(np.uint8)
            octets[rng.integers(octets.size)] = rng.integers(256)
            arrays[name] = changed.reshape(array.shape)
        if not arrays:
            break
    return arrays


def attack(folder, count, seed):
    """Read so many mutated files; return how many were still networks."""
    rng = np.random.default_rng(seed)
    contents, held = [], []
    for path in good_files(folder):
        contents.append(path.read_bytes())
        with np.load(path) as file:
            held.append({name: file[name] for name in file.files})
    path, accepted = folder / "mutated.npz", 0
    for i in range(count):
        which = rng.integers(len(contents))
        if i % 2:
            path.write_bytes(mutate_bytes(contents[which], rng))
        else:
            np.savez(path, **mutate_arrays(held[which], rng))
        try:
            network = load_sparse(path, max_bytes=1 << 20)
        except NettrimError as error:
            assert str(error)
            continue
        assert isinstance(network, Network)
        accepted += 1
    return accepted


def test_hundreds_of_mutated_files_raise_nothing_else(tmp_path):
    assert 0 < attack(tmp_path, 400, seed=1) < 200


@pytest.mark.slow
def test_ten_thousand_mutated_files_raise_nothing_else(tmp_path):
    assert 0 < attack(tmp_path, 10_000, seed=2) < 5000

"""Networks in files whose zeros take no room: ``.npz`` archives of plain arrays, never pickled.

A file is what :func:`.to_npz` writes, with two differences. A layer whose weights ``W3`` are stored
in a sparse format has ``W3.values`` and the arrays of the format instead. And one more text,
``sparse``, says how, in JSON::

    {"format": "nettrim_solver.sparse/1",
     "arrays": {"W3": {"format": "relative", "shape": [784, 300], "gap_bits": 5}}}
"""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import check_integer
from ..exceptions import ProblemError, ProblemFileError
from ..network import Network
from ..problem_file import check_path, load_arrays, save_arrays, unreadable
from .arrays import described_network, network_arrays
from .formats import GAP_BITS, Packed, pack, unpack
from .sizes import SizeReport, size_report

FORMAT = "nettrim_solver.sparse/1"
WHAT = "a network written by save_sparse"

#: What the arrays of a sparse format are called.
PARTS = ("values", "indices", "indptr", "mask", "gaps")

#: Bytes that a file may take in memory unless its reader allows more: a billion float32 weights.
MAX_BYTES = 4 << 30

#: Bytes per weight that the limit reckons with.
WIDEST = 8


def save_sparse(
    path: str | os.PathLike[str],
    network: Network,
    format: str = "smallest",
    gap_bits: int | None = GAP_BITS,
) -> SizeReport:
    """Write a network whose zeros take no room, all or nothing; return what its weights take.

    The arrays of weights are compressed, too, where that makes the file smaller; the report counts
    them as they are in memory.

    Parameters
    ----------
    path : path
    network : Network
    format : str
        For the weights of every layer: ``"smallest"``, or one of ``"dense"``, ``"bitmask"``,
        ``"csr"`` and ``"relative"``; see :mod:`.formats`.
    gap_bits : int or None
        Bits per gap of ``relative``, from 1 to 16; None takes the number that needs fewest bytes.

    Raises
    ------
    SettingsError
        If a setting is none of those.
    ProblemError
        If an operation or activation is not one of this package.
    OSError
        If the folder is missing or not writable; an existing file is then left as it was.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Dense, Network
    >>> report = save_sparse("sparse.npz", Network([Dense(np.eye(64))]))  # doctest: +SKIP
    """
    report = size_report(network, format, gap_bits)
    arrays = network_arrays(network)
    described: dict[str, dict[str, Any]] = {}
    for number, (layer, sizes) in enumerate(zip(network.layers, report.layers, strict=True)):
        if sizes.chosen == "dense":
            continue
        key = f"W{number}"
        packed = pack(layer.W, sizes.chosen, gap_bits)
        described[key] = {"format": packed.format, "shape": packed.shape}
        if packed.gap_bits is not None:
            described[key]["gap_bits"] = packed.gap_bits
        del arrays[key]
        arrays |= {f"{key}.{name}": array for name, array in packed.arrays.items()}
    arrays["sparse"] = np.array(json.dumps({"format": FORMAT, "arrays": described}))
    weights = [name for name in arrays if re.fullmatch(r"W\d+(\.\w+)?", name)]
    save_arrays(path, arrays, deflate=weights)
    return report


def load_sparse(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Network:
    """Read a network that :func:`save_sparse` wrote; its weights are the same bit for bit.

    Parameters
    ----------
    path : path
    max_bytes : int
        A file whose arrays, or whose weights at eight bytes each, would take more memory is refused
        before they do: a few bytes can claim to be terabytes of zeros.

    Raises
    ------
    ProblemFileError
        If the file is missing, damaged, pickled, too large, or no such network.
    """
    check_integer("max_bytes", max_bytes, 1)
    check_path(path)
    _check_members(path, max_bytes)
    arrays = load_arrays(path, WHAT, math.inf)
    if "sparse" not in arrays or "network" not in arrays:
        raise ProblemFileError(
            f"{path} is not {WHAT}: it must hold the texts 'sparse' and 'network', but holds "
            f"{sorted(arrays)} (from_npz reads dense networks)"
        )
    try:
        content = json.loads(str(arrays.pop("sparse")[()]))
        if content["format"] != FORMAT:
            raise ProblemError(f"its format must be {FORMAT!r}, but is {content['format']!r}")
        packed = {
            str(key): _packed(str(key), entry, arrays) for key, entry in content["arrays"].items()
        }
        size = WIDEST * sum(math.prod(one.shape) for one in packed.values())
        if size > max_bytes:
            raise ProblemError(_too_large(size, max_bytes))
        return described_network(arrays | {key: unpack(one) for key, one in packed.items()})
    except ProblemError as error:
        raise ProblemFileError(f"{path} is not {WHAT}: {error}") from None
    except Exception as error:
        # The texts of a file that another program wrote may be anything.
        raise unreadable(path, WHAT, error) from None


def _check_members(path: str | os.PathLike[str], max_bytes: int) -> None:
    """Raise if the members of an archive would take more than `max_bytes`, before reading them."""
    if not zipfile.is_zipfile(path):
        return  # load_arrays says what it is instead
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception as error:
        # As in load_arrays: a damaged archive makes zipfile raise nearly anything.
        raise unreadable(path, WHAT, error) from None
    if size > max_bytes:
        raise ProblemFileError(f"{path}: {_too_large(size, max_bytes)}")


def _packed(key: str, entry: Mapping[str, Any], arrays: dict[str, Any]) -> Packed:
    """Return one array as the texts and arrays of a file describe it; its parts are taken out."""
    if key in arrays:
        raise ProblemError(f"{key!r} must be stored once, but is there dense and sparse")
    shape = entry["shape"]
    if not isinstance(shape, list) or not shape or not all(type(n) is int for n in shape):
        raise ProblemError(f"the shape of {key!r} must be a list of integers, but was {shape!r}")
    if min(shape) < 1:
        raise ProblemError(f"the shape of {key!r} must be positive, but was {shape}")
    parts = {name: arrays.pop(f"{key}.{name}") for name in PARTS if f"{key}.{name}" in arrays}
    return Packed(entry["format"], tuple(shape), parts, entry.get("gap_bits"))


def _too_large(size: int, max_bytes: int) -> str:
    return f"it takes {size} bytes of memory, more than max_bytes={max_bytes}"

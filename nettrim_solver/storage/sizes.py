"""How many bytes the weights of a network take in every format, places and fillers included."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import printable
from ..network import Layer, Network
from ..network.graph import check_network
from ..network.result import aligned, plain
from .formats import FORMATS, GAP_BITS, Bytes, check_format, count_bytes

#: Bytes of a weight in the file that the ratio compares with.
FLOAT32 = 4


@dataclass(frozen=True)
class LayerSizes:
    """What the weights of one layer take.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : str
    n_kept : int
        Weights that are stored: all but ``+0.0``.
    chosen : str
        The format that the layer is stored in.
    sizes : dict of str to Bytes
        For every format, bytes of the kept weights, of their places, and of fillers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    n_kept: int
    chosen: str
    sizes: dict[str, Bytes]

    @property
    def density(self) -> float:
        """Fraction of the weights that are kept."""
        return self.n_kept / math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in the chosen format."""
        return self.sizes[self.chosen].total

    @property
    def float32_bytes(self) -> int:
        """Bytes of all weights in float32."""
        return FLOAT32 * math.prod(self.shape)


@dataclass(frozen=True)
class SizeReport:
    """What the weights of a network take.

    Attributes
    ----------
    layers : tuple of LayerSizes
    other_bytes : int
        Intercepts and the parameters of other operations, which are stored as they are. The
        container's own bytes, a few hundred per array, are not counted.
    gap_bits : int or None
        Bits per gap of ``relative``; None for the best of every layer.
    """

    layers: tuple[LayerSizes, ...]
    other_bytes: int
    gap_bits: int | None

    @property
    def sizes(self) -> dict[str, Bytes]:
        """For every format, the bytes of all layers in it."""
        return {name: _together(one.sizes[name] for one in self.layers) for name in FORMATS}

    @property
    def chosen(self) -> Bytes:
        """Bytes of all layers, each in its chosen format."""
        return _together(one.sizes[one.chosen] for one in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes of all weights in the chosen formats."""
        return self.chosen.total

    @property
    def float32_bytes(self) -> int:
        """Bytes of all weights in dense float32."""
        return sum(one.float32_bytes for one in self.layers)

    @property
    def ratio(self) -> float:
        """How many times more dense float32 weights take."""
        return _ratio(self.float32_bytes, self.bytes)

    @property
    def overhead(self) -> float:
        """Bytes of places and fillers relative to those of the kept weights."""
        _, indices, fillers = chosen = self.chosen
        return _ratio(indices + fillers, chosen.values)

    def table(self) -> str:
        """Return a table with a line per layer and format; ``*`` marks the chosen one."""
        rows = [["layer", "shape", "kept %", "format", "", "values", "places", "fillers", "bytes",
                 "ratio"]]  # fmt: skip
        for one in self.layers:
            shape = " x ".join(map(str, one.shape))
            head = [printable(one.name), shape, f"{100 * one.density:.2f}"]
            for name in FORMATS:
                mark = "*" if name == one.chosen else ""
                rows.append([*head, name, mark, *_cells(one.sizes[name], one.float32_bytes)])
                head = ["", "", ""]
        head = ["total", "", ""]
        for name, size in self.sizes.items():
            rows.append([*head, name, "", *_cells(size, self.float32_bytes)])
            head = ["", "", ""]
        rows.append(["", "", "", "chosen", "*", *_cells(self.chosen, self.float32_bytes)])
        return aligned(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values; what is infinite becomes None."""
        layers = [
            {
                **{f.name: getattr(one, f.name) for f in dataclasses.fields(one)},
                "density": one.density,
                "sizes": _named(one.sizes, one.float32_bytes),
                "bytes": one.bytes,
                "ratio": _ratio(one.float32_bytes, one.bytes),
            }
            for one in self.layers
        ]
        report = {
            "layers": [plain(layer) for layer in layers],
            "sizes": _named(self.sizes, self.float32_bytes),
            "chosen": _named({"chosen": self.chosen}, self.float32_bytes)["chosen"],
            "float32_bytes": self.float32_bytes,
            "bytes": self.bytes,
            "ratio": self.ratio,
            "overhead": self.overhead,
            "other_bytes": self.other_bytes,
            "gap_bits": self.gap_bits,
        }
        return {name: plain(value) for name, value in report.items()}


def size_report(
    network: Network, format: str = "smallest", gap_bits: int | None = GAP_BITS
) -> SizeReport:
    r"""Return what the weights of a network take in every format.

    Parameters
    ----------
    network : Network
    format, gap_bits
        As :func:`.save_sparse` takes them: what is the chosen format of each layer.

    Raises
    ------
    SettingsError
        If a setting is none of those.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Dense, Network
    >>> W = np.zeros((300, 100), np.float32)
    >>> W[::20, ::2] = 1
    >>> report = size_report(Network([Dense(W)]))
    >>> report.bytes, report.sizes["bitmask"].total, round(report.ratio, 1)
    (4352, 6750, 27.6)
    >>> print("\n".join(report.table().splitlines()[:5]))
    layer    shape      kept %  format       values  places  fillers  bytes   ratio
    dense_0  300 x 100  2.50    dense        120000  0       0        120000  1.00
                                bitmask      3000    3750    0        6750    17.78
                                csr       *  3000    1352    0        4352    27.57
                                relative     3000    469     3820     7289    16.46
    """
    check_network(network)
    check_format(format, gap_bits)
    layers = []
    for layer in network.layers:
        sizes = count_bytes(layer.W, gap_bits)
        chosen = format
        if format == "smallest":
            chosen = min(FORMATS, key=lambda name: sizes[name].total)
        n_kept = sizes["bitmask"].values // layer.dtype.itemsize
        layers.append(
            LayerSizes(layer.name, layer.W.shape, str(layer.dtype), n_kept, chosen, sizes)
        )
    others = [
        getattr(op, field.name)
        for op in network.operations
        for field in dataclasses.fields(op)
        if not (isinstance(op, Layer) and field.name == "W")
    ]
    other_bytes = sum(value.nbytes for value in others if isinstance(value, np.ndarray))
    return SizeReport(tuple(layers), other_bytes, gap_bits)


def _together(sizes: Iterable[Bytes]) -> Bytes:
    found = list(sizes)
    return Bytes(*(sum(size[i] for size in found) for i in range(3)))


def _ratio(one: int, other: int) -> float:
    return one / other if other else math.inf


def _cells(size: Bytes, float32_bytes: int) -> list[str]:
    return [*map(str, size), str(size.total), f"{_ratio(float32_bytes, size.total):.2f}"]


def _named(sizes: dict[str, Bytes], float32_bytes: int) -> dict[str, Any]:
    return {
        name: size._asdict() | {"bytes": size.total, "ratio": _ratio(float32_bytes, size.total)}
        for name, size in sizes.items()
    }

"""Pictures for the HTML report, as text: bars, tracks, curves, histograms, and masks as PNG.

Everything is SVG with lengths in percent, so that pictures take the width of the page while text
and strokes keep their size. Colours are classes of ``data/report.css``.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Cells of a mask picture along each side, at most.
MAX_CELLS = 64

#: Width of a mask picture in CSS pixels, and of one of its cells, at most.
MASK_PIXELS, CELL_PIXELS = 256, 16

#: The colour of kept weights; how opaque says how many.
INK = (42, 120, 214)

#: Bars of a histogram; odd, so that one of them has zero in its middle.
N_BINS = 41

MAX_TICKS = 6

Counts = NDArray[np.int64]


def escaped(value: Any) -> str:
    """Return any text so that a page shows it and never reads it as markup."""
    return html.escape(str(value), quote=True)


# Axes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogAxis:
    """Whole decades from ``10**low`` to ``10**high``."""

    low: int
    high: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> LogAxis | None:
        """Return the axis of all positive finite values; None if there are none."""
        drawn = [value for value in values if value is not None and drawable(value)]
        if not drawn:
            return None
        low, high = math.floor(math.log10(min(drawn))), math.ceil(math.log10(max(drawn)))
        return cls(low, max(high, low + 1))

    def place(self, value: float) -> float:
        """Return where a value stands, in percent of the axis."""
        return 100 * (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return places and labels, in percent of the target."""
        step = math.ceil((self.high - self.low) / MAX_TICKS)
        within = (1, 2, 5) if self.high - self.low <= 2 else (1,)
        powers = range(self.low, self.high + 1, step)
        marks = [(n, power) for power in powers for n in within if n == 1 or power < self.high]
        return [
            (self.place(n * 10.0**power), f"{n * 10.0 ** (power + 2):g} %") for n, power in marks
        ]


def drawable(value: Any) -> bool:
    """Return whether a value has a place on a logarithmic axis."""
    return value is not None and math.isfinite(value) and value > 0


def _axis(ticks: Iterable[tuple[float, str]]) -> str:
    labels = (f'<span style="left:{at:.2f}%">{escaped(text)}</span>' for at, text in ticks)
    return f'<div class="axis" aria-hidden="true">{"".join(labels)}</div>'


# One row per layer ------------------------------------------------------------------------------


def row(label: str, svg: str, value: str) -> str:
    """Return a row of a chart; `label` and `value` are HTML."""
    return (
        f'<div class="row"><span class="label">{label}</span>{svg}'
        f'<span class="value">{value}</span></div>'
    )


def bar(fraction: float) -> str:
    """Return a bar that is filled to a fraction."""
    rect = '<rect class="{}" width="{:.3f}%" height="14" y="2" rx="3"/>'
    rects = rect.format("track", 100) + rect.format("bar", 100 * fraction)
    return f'<svg aria-hidden="true">{rects}</svg>'


def track(axis: LogAxis, measured: float | None, heldout: float | None, bound: float | None) -> str:
    """Return what was measured as a dot and a ring, beside its bound as a tick."""
    parts = [
        f'<line class="grid" x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="18"/>'
        for at, _ in axis.ticks()
    ]
    places = [axis.place(v) for v in (measured, heldout, bound) if v is not None and drawable(v)]
    if places:
        low, high = min(places), max(places)
        parts.append(f'<line class="span" x1="{low:.2f}%" x2="{high:.2f}%" y1="9" y2="9"/>')
    if bound is not None and drawable(bound):
        at = axis.place(bound)
        parts.append(f'<line class="tick" x1="{at:.2f}%" x2="{at:.2f}%" y1="1" y2="17"/>')
    for value, kind, radius in ((heldout, "ring", 5), (measured, "dot", 4.5)):
        if value is not None and drawable(value):
            parts.append(
                f'<circle class="{kind}" cx="{axis.place(value):.2f}%" cy="9" r="{radius}"/>'
            )
    return f'<svg aria-hidden="true">{"".join(parts)}</svg>'


def axis_row(axis: LogAxis) -> str:
    """Return the labels below the tracks."""
    return f'<div class="row"><span></span>{_axis(axis.ticks())}<span></span></div>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return signs, which are SVG shapes in a box of 26 x 12, with what they mean."""
    parts = (f'<span><svg aria-hidden="true">{sign}</svg>{escaped(text)}</span>'
             for sign, text in entries)  # fmt: skip
    return f'<div class="legend">{"".join(parts)}</div>'


# Curves -----------------------------------------------------------------------------------------

#: Class and points (zeros in percent, value) of a line.
Curve = tuple[str, Sequence[tuple[float, float]]]


def curves(lines: Sequence[Curve], axis: LogAxis, start: float, here: float | None = None) -> str:
    """Return lines over the zeros, from `start` to 100 percent.

    Parameters
    ----------
    lines : sequence of Curve
    axis : LogAxis
        Of the values.
    start : float
    here : float, optional
        Zeros that are marked.
    """

    def across(zeros: float) -> float:
        return 100 * (zeros - start) / (100 - start)

    vertical = "".join(
        f'<span style="top:{100 - at:.2f}%">{escaped(text)}</span>' for at, text in axis.ticks()
    )
    parts = [
        f'<line class="grid" x1="0" x2="100%" y1="{100 - at:.2f}%" y2="{100 - at:.2f}%"/>'
        for at, _ in axis.ticks()
    ]
    if here is not None and here >= start:
        at = across(here)
        parts.append(f'<line class="here" x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="100%"/>')
    for name, points in lines:
        places = [(across(zeros), 100 - axis.place(value)) for zeros, value in points]
        path = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
        # Stretched to the picture; the dots, which must stay round, are outside.
        parts.append(
            '<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none" '
            f'overflow="visible"><polyline class="{name}" points="{path}"/></svg>'
        )
        parts += [f'<circle class="{name}" cx="{x:.2f}%" cy="{y:.2f}%" r="3"/>' for x, y in places]
    middle = (start + 100) / 2
    ticks = [(across(zeros), f"{zeros:g} %") for zeros in (start, middle, 100)]
    return (
        f'<div class="plot"><div class="vertical" aria-hidden="true">{vertical}</div>'
        f'<svg aria-hidden="true">{"".join(parts)}</svg>{_axis(ticks)}</div>'
    )


# Weights ----------------------------------------------------------------------------------------


def cell_counts(mask: NDArray[np.bool_]) -> tuple[Counts, Counts]:
    """Return how many entries are true in each cell of a picture, and how many there are.

    Parameters
    ----------
    mask : ndarray of bool, shape (n_rows, n_columns)

    Returns
    -------
    counts, sizes : ndarray of int64, both sides at most ``MAX_CELLS``
    """
    counts: NDArray[Any] = mask
    sizes = np.ones((1, 1), dtype=np.int64)
    for axis, n in enumerate(mask.shape):
        cells = min(n, MAX_CELLS)
        starts = np.arange(cells) * n // cells
        counts = np.add.reduceat(counts, starts, axis=axis, dtype=np.int64)
        shape = (-1, 1) if axis == 0 else (1, -1)
        sizes = sizes * np.diff([*starts, n]).reshape(shape)
    return counts, sizes


def png(levels: NDArray[np.uint8]) -> bytes:
    """Return a picture of one colour, whose opacity is given; a PNG with a palette.

    Parameters
    ----------
    levels : ndarray of uint8, shape (height, width)
        0 is transparent.

    References
    ----------
    W3C, *Portable Network Graphics (PNG) Specification*, sections 5 and 11.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    height, width = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    # Every row begins with the number of its filter, 0 for none.
    rows = np.concatenate([np.zeros((height, 1), np.uint8), levels], axis=1)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"PLTE", bytes(INK) * 256),
            chunk(b"tRNS", bytes(range(256))),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            chunk(b"IEND", b""),
        ]
    )


def mask_picture(mask: NDArray[np.bool_], alt: str) -> tuple[str, float]:
    """Return the density of a mask as an image, and the largest density, which is drawn opaque."""
    counts, sizes = cell_counts(mask)
    density = counts / sizes
    largest = float(density.max(initial=0.0))
    levels = np.rint(255 * density / largest) if largest else np.zeros_like(density)
    content = base64.b64encode(png(levels.astype(np.uint8))).decode("ascii")
    height, width = counts.shape
    side = min(CELL_PIXELS, MASK_PIXELS / max(height, width))
    return (
        f'<img class="mask" alt="{escaped(alt)}" style="width:{side * width:.0f}px;'
        f'aspect-ratio:{width}/{height}" src="data:image/png;base64,{content}">',
        largest,
    )


def histogram(kept: NDArray[Any], trained: NDArray[Any]) -> str:
    """Return how kept weights are spread, before what the trained weights were; zeros left out."""
    reach = float(max(np.abs(kept).max(initial=0.0), np.abs(trained).max(initial=0.0)))
    if not math.isfinite(reach) or reach == 0.0:
        return ""
    found = [np.histogram(v[v != 0], N_BINS, (-reach, reach))[0] for v in (trained, kept)]
    tallest = max(int(counts.max()) for counts in found)
    rects = "".join(
        f'<rect class="{name}" x="{i + 0.05 * (1 + index):.2f}" width="{0.9 - 0.1 * index:.2f}" '
        f'y="{100 - 100 * n / tallest:.2f}" height="{100 * n / tallest:.2f}"/>'
        for index, (name, counts) in enumerate(zip(("trained", "kept"), found, strict=True))
        for i, n in enumerate(counts.tolist())
        if n
    )
    return (
        f'<svg class="histogram" viewBox="0 0 {N_BINS} 100" preserveAspectRatio="none" '
        f'aria-hidden="true">{rects}</svg><div class="ends" aria-hidden="true">'
        f"<span>{-reach:.3g}</span><span>0</span><span>{reach:.3g}</span></div>"
    )

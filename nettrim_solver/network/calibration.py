"""Calibration data, and the signals of one layer that are collected from it.

The signals of a whole network on many samples need not fit into memory. They are computed batch by
batch, and of the layer at hand only chosen rows are kept: samples for a dense layer, (sample,
position) pairs for a convolution.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ..checks import as_array, check_integer, layout_remedy
from ..exceptions import ProblemError
from .gathering import Embedding
from .graph import BATCH_SIZE, Network
from .layers import Layer
from .operations import BLOCK_ENTRIES, Shape, sample_blocks
from .patches import RowNumbers
from .spill import RowStore, Spill

Folder = str | os.PathLike[str]

#: What one batch of calibration data is called in messages.
WHAT = "the calibration data"


class Calibration:
    """Inputs of a network, read and checked once, given out in batches as often as asked.

    Parameters
    ----------
    data : array_like of shape (n_samples, ...), or iterable of such batches
        An array or memory map is kept as a view, and read batch by batch. So are the arrays of a
        list or tuple, unless it holds one row of numbers per sample. Any other iterable (a
        generator, a data loader) is read once, into a temporary file. A batch that is a tuple or
        list, ``(inputs, labels)``, counts with its first entry.
    network : Network, optional
        Whose input the samples must fit.
    batch_size : int
        Samples that are given out at once, at most.
    spill : path, optional
        The folder for the temporary file of an iterable; the system's own when omitted. The file
        has no name, and goes away with this object or the process.

    Attributes
    ----------
    n_samples : int
    sample_shape : tuple of int
        Shape of one sample.
    dtype : dtype
        As given; the network converts (see :meth:`.Network.prepare`).

    Raises
    ------
    ProblemError
        If there are no samples, if shapes or dtypes differ from each other or from the network's,
        if entries are NaN or infinite (the message has their number), or if squares overflow.

    Notes
    -----
    Memory: one batch beside the data given.

    Examples
    --------
    >>> import numpy as np
    >>> batches = (np.full((3, 2), n) for n in range(4))
    >>> calibration = Calibration(batches, batch_size=2)
    >>> calibration
    Calibration(12 samples of shape (2,), int64)
    >>> [len(batch) for batch in calibration.batches()]
    [2, 2, 2, 2, 2, 2]
    """

    def __init__(
        self,
        data: Any,
        network: Network | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        spill: Folder | None = None,
    ) -> None:
        check_integer("batch_size", batch_size, 1)
        self.batch_size = batch_size
        if isinstance(data, (str, bytes, os.PathLike, Mapping)) or sp.issparse(data):
            remedy = "; give its toarray()" if sp.issparse(data) else ""
            raise ProblemError(
                f"{WHAT} must be an array or an iterable of batches, but was "
                f"a {type(data).__name__}{remedy}"
            )
        self._shape = None if network is None else network.input_shape
        self._dtype: np.dtype[Any] | None = None
        self._parts: list[NDArray[Any]] = []
        if _are_rows(data):
            data = as_array(WHAT, data)
        if hasattr(data, "shape"):
            self._parts = [self._checked(data, WHAT)]
        elif isinstance(data, (list, tuple)):
            self._parts = [self._checked(batch, _which(i)) for i, batch in enumerate(data)]
        else:
            self._parts = [self._spilled(data, tempfile.gettempdir() if spill is None else spill)]
        self._check_content(None if network is None else network.dtype)
        if network is not None and network.shapes is None:
            network.shapes_for(self.sample_shape)

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return sum(len(part) for part in self._parts)

    @property
    def sample_shape(self) -> Shape:
        """Shape of one sample."""
        assert self._shape is not None
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the data as given."""
        assert self._dtype is not None
        return self._dtype

    def batches(self) -> Iterator[NDArray[Any]]:
        """Yield the samples in order, in batches of at most ``batch_size``."""
        for part in self._parts:
            for start in range(0, len(part), self.batch_size):
                yield part[start : start + self.batch_size]

    def __len__(self) -> int:
        return self.n_samples

    def __repr__(self) -> str:
        return f"Calibration({self.n_samples} samples of shape {self.sample_shape}, {self.dtype})"

    def _checked(self, given: Any, what: str) -> NDArray[Any]:
        """Return a batch as an array whose shape and dtype are those of the others."""
        pair = isinstance(given, (tuple, list)) and len(given) and hasattr(given[0], "shape")
        if isinstance(given, Mapping):
            raise ProblemError(
                f"{what} must be an array, but was a {type(given).__name__}: "
                f"calibration_batches(batches, inputs={[*given][:1]}) takes the inputs out of each"
            )
        batch = as_array(what, given[0] if pair else given)
        if batch.dtype.kind not in "fiub":
            half = "; give it in float32" if "float" in batch.dtype.name else ""
            raise ProblemError(f"{what} must hold real numbers, but has dtype {batch.dtype}{half}")
        if self._shape is None and batch.ndim > 1:
            self._shape = batch.shape[1:]
        if batch.shape[1:] != self._shape or batch.ndim < 2:
            wanted = "..." if self._shape is None else ", ".join(map(str, self._shape))
            remedy = "" if self._shape is None else layout_remedy(batch.shape[1:], self._shape)
            raise ProblemError(
                f"{what} must have shape (n_samples, {wanted}), but has shape {batch.shape}{remedy}"
            )
        if self._dtype is None:
            self._dtype = batch.dtype
        if batch.dtype != self._dtype:
            raise ProblemError(
                f"{what} must have the dtype of those before it, {self._dtype}, "
                f"but has {batch.dtype}"
            )
        return batch

    def _spilled(self, batches: Any, folder: Folder) -> NDArray[Any]:
        """Return the batches of an iterable as one array in a temporary file."""
        if not isinstance(batches, Iterable):
            raise ProblemError(
                f"{WHAT} must be an array or an iterable of batches, but was "
                f"a {type(batches).__name__}"
            )
        with contextlib.ExitStack() as stack:
            spill: Spill | None = None
            for i, given in enumerate(batches):
                batch = self._checked(given, _which(i))
                if spill is None:
                    spill = Spill(batch.shape[1:], batch.dtype, folder)
                    stack.callback(spill.close)
                spill.append(batch)
            return np.empty((0, 1)) if spill is None else spill.finish()

    def _check_content(self, dtype: Any) -> None:
        """Raise if there are no samples, entries that are not finite, or squares that overflow."""
        if self.n_samples == 0 or 0 in self.sample_shape:
            raise ProblemError(f"{WHAT} must hold samples, but is empty")
        if self.dtype.kind != "f":
            return
        bad = sum(int(batch.size - np.isfinite(batch).sum()) for batch in self.batches())
        if bad:
            raise ProblemError(f"{WHAT} must be finite, but holds {bad} NaN or infinite entries")
        working = np.result_type(self.dtype, np.float32 if dtype is None else dtype)
        limit = math.sqrt(np.finfo(working).max)
        largest = max(max(float(batch.max()), -float(batch.min())) for batch in self.batches())
        if largest > limit:
            raise ProblemError(
                f"{WHAT} must have entries of at most {limit:.2g} in size, whose squares are "
                f"finite, but one has {largest:.2g}"
            )


def _are_rows(data: Any) -> bool:
    """Return whether a list holds rows of numbers, one per sample, and not batches."""
    if not isinstance(data, (list, tuple)) or not len(data):
        return False
    first = data[0]
    if isinstance(first, (list, tuple)):
        return len(first) > 0 and isinstance(first[0], Real)
    return getattr(first, "ndim", None) == 1


def as_calibration(X: Any, network: Network, spill: Folder | None, name: str) -> Calibration:
    """Return samples that fit a network; the message names the argument if they do not."""
    try:
        if isinstance(X, Calibration):
            network.shapes_for(X.sample_shape)
            if network.input_shape not in (None, X.sample_shape):
                raise ProblemError(
                    f"{WHAT} must have samples of shape {network.input_shape}, but has those of "
                    f"shape {X.sample_shape}"
                )
        data = X if isinstance(X, Calibration) else Calibration(X, network, spill=spill)
        _look_up(network, data)
        return data
    except ProblemError as error:
        raise ProblemError(f"{name}: {error}") from None


def _look_up(network: Network, data: Calibration) -> None:
    """Raise for samples that are in no table of the network: now, and not behind other layers."""
    layers = {layer.name for layer in network.layers}
    tables = [
        op.name
        for op in network.operations
        if isinstance(op, Embedding) and not layers & network.ancestors(op.name)
    ]
    for batch in data.batches() if tables else ():
        network.outputs(batch, tables)


@dataclass(frozen=True, eq=False)
class LayerSignals:
    """What one layer gets and what it must give, on chosen rows.

    Attributes
    ----------
    layer : Layer
    rows : ndarray of int64, shape (R,)
        ``sample * n_positions + position``, ascending.
    X : tuple of ndarray of shape (R, n_inputs)
        The layer's input, one matrix per group.
    Z : ndarray of shape (R, n_outputs)
        The pre-activations to reproduce; ``Z[:, layer.columns(g)]`` belong to group g.
    """

    layer: Layer
    rows: RowNumbers
    X: tuple[NDArray[Any], ...]
    Z: NDArray[Any]


def choose_rows(n_rows: int, max_rows: int | None, seed: int) -> RowNumbers:
    """Return at most `max_rows` of the numbers below `n_rows`, ascending, all of equal chance.

    The same arguments always choose the same rows.

    Examples
    --------
    >>> choose_rows(4, None, 0)
    array([0, 1, 2, 3])
    >>> len(choose_rows(1_000_000_000, 100, 0))
    100
    """
    check_integer("seed", seed, 0)
    if max_rows is not None:
        check_integer("max_rows", max_rows, 1)
    if max_rows is None or max_rows >= n_rows:
        return np.arange(n_rows, dtype=np.int64)
    chosen = np.random.default_rng(seed).choice(n_rows, max_rows, replace=False, shuffle=False)
    return np.sort(chosen.astype(np.int64, copy=False))


def draw(data: Calibration, n: int, seed: int) -> NDArray[Any]:
    """Return `n` samples of equal chance, in their order; all of them if there are no more."""
    chosen, parts, first = choose_rows(len(data), n, seed), [], 0
    for batch in data.batches():
        inside = (first <= chosen) & (chosen < first + len(batch))
        parts.append(batch[chosen[inside] - first])
        first += len(batch)
    return np.concatenate(parts)


def collect(
    network: Network,
    name: str,
    data: Calibration,
    *,
    original: Network | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    spill: Folder | None = None,
) -> LayerSignals:
    """Return the signals of one layer on chosen rows.

    Parameters
    ----------
    network : Network
        Whose signals enter the layer: the trained network, or in a cascade the one that is pruned
        up to this layer.
    name : str
        The layer.
    data : Calibration
    original : Network, optional
        Whose layer of this name gives the pre-activations to reproduce; `network` when omitted.
    max_rows : int, optional
        A cap on the rows. Which ones are kept depends on the seed and their number alone, so
        the rows are the same for every network and every call.
    seed : int
    spill : path, optional
        A folder for temporary files that hold the signals instead of the memory. They have no
        name, and go away with the arrays or the process.

    Notes
    -----
    Memory: R rows of (n_inputs + n_outputs) numbers, unless they are spilled; and three times what
    is live in the network for one batch, see :func:`collect_bytes`. Batches without a chosen row
    are not computed. The arithmetic is that of :meth:`.Network.prepare`: use
    ``network.astype(numpy.float64)`` for float64 signals.
    """
    layer = network.layer(name)
    places = layer.n_positions(network.shapes_for(data.sample_shape)[layer.inputs[0]])
    rows = choose_rows(data.n_samples * places, max_rows, seed)
    dtype = network.prepare(next(data.batches())[:0]).dtype
    sizes = [matrix.shape[0] for matrix in layer.matrices()]
    with contextlib.ExitStack() as stack:
        stores = []
        for size in (*sizes, layer.n_outputs):
            stores.append(RowStore(len(rows), (size,), dtype, spill))
            stack.callback(stores[-1].close)
        first = 0
        for batch in data.batches():
            low, high = np.searchsorted(rows, [first * places, (first + len(batch)) * places])
            local = rows[low:high] - first * places
            first += len(batch)
            if local.size:
                # Only the samples of which a row was chosen.
                samples, number = np.unique(local // places, return_inverse=True)
                local = number * places + local % places
                _store_batch(stores, network, original, layer, batch[samples], local)
        *X, Z = (store.finish() for store in stores)
    return LayerSignals(layer, rows, tuple(X), Z)


def _store_batch(
    stores: list[RowStore],
    network: Network,
    original: Network | None,
    layer: Layer,
    batch: NDArray[Any],
    rows: RowNumbers,
) -> None:
    """Add chosen rows of one batch to the stores: the inputs of every group, and the output."""
    *inputs, last = stores
    (signal,) = network.outputs(batch, layer.inputs).values()
    places = layer.n_positions(signal.shape[1:])
    width = sum(matrix.shape[0] for matrix in layer.matrices())
    for block, chosen in _blocks(rows, len(batch), places, width):
        for store, part in zip(inputs, layer.input_rows(signal[block], chosen), strict=True):
            store.append(part)
    if original is None:
        output = layer.apply(signal)
    else:
        del signal
        output = original.outputs(batch, [layer.name])[layer.name]
    for block, chosen in _blocks(rows, len(batch), places, layer.n_outputs):
        last.append(layer.output_rows(output[block], chosen))


def _blocks(
    rows: RowNumbers, n_samples: int, places: int, width: int
) -> Iterator[tuple[slice, RowNumbers]]:
    """Yield samples whose rows make a block, and which rows of theirs are chosen."""
    for block in sample_blocks(n_samples, places * width):
        low, high = np.searchsorted(rows, [block.start * places, block.stop * places])
        yield block, rows[low:high] - block.start * places


def collect_bytes(
    network: Network,
    name: str,
    data: Calibration,
    *,
    max_rows: int | None = None,
    spilled: bool = False,
) -> int:
    """Return a bound on the memory that :func:`collect` takes, in bytes.

    ::

        R (n_inputs + n_outputs) itemsize                    the result, unless it is spilled
        + 16 min(n_rows, 50 R)                               row numbers, while they are chosen
        + 3 batch_size live itemsize                         signals, see Network.live_entries
        + batch_size sample                                  samples as they were given
        + 64 max(2^17, signal or rows of one sample)         blocks

    It holds for a cascade, too: the two networks are walked one after the other.
    """
    layer = network.layer(name)
    shapes = network.shapes_for(data.sample_shape)
    places = layer.n_positions(shapes[layer.inputs[0]])
    n_rows = data.n_samples * places
    R = n_rows if max_rows is None else min(n_rows, max_rows)
    itemsize = network.prepare(next(data.batches())[:0]).dtype.itemsize
    width = sum(matrix.shape[0] for matrix in layer.matrices()) + layer.n_outputs
    block = max(BLOCK_ENTRIES, *map(math.prod, shapes.values()), min(R, places) * width)
    batch = min(data.batch_size, data.n_samples)
    return (
        (0 if spilled else R * width * itemsize)
        + 16 * min(n_rows, 50 * max(R, 200))
        + 3 * batch * network.live_entries(name, shapes) * itemsize
        + batch * math.prod(data.sample_shape) * data.dtype.itemsize
        + 64 * block
    )


def _which(i: int) -> str:
    return f"batch {i} of {WHAT}"

r"""Networks evaluated with sparse matrices, layer by layer where that is faster.

A layer with few nonzeros is kept as the CSR matrix of :math:`W^T`, one row per output, and computes
:math:`Z^T = W^T X^T`: scipy adds, for every nonzero, one row of :math:`X^T` to one of :math:`Z^T`.
That costs as many products as there are nonzeros, but each of them costs several of a dense BLAS,
which also has all threads where scipy has one. So a layer has to be sparse enough, and how sparse
depends on the machine, its threads and the batch: it is measured, or told by a threshold.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ..checks import check_flag, check_integer, check_number
from ..exceptions import ProblemError, SettingsError
from .graph import BATCH_SIZE, Network, check_network
from .layers import Conv2d, Dense, Layer
from .operations import Operation, Shape, sample_blocks
from .pooling import window_places
from .result import aligned
from .windows import Window

#: Density up to which layers are sparse unless it is measured: at this one scipy was faster than a
#: BLAS on one thread for all shapes and batches of benchmarks/results/inference.json.
DENSITY_THRESHOLD = 0.05

#: Timings of a layer in each form, of which the fastest counts; fewer where they take long.
REPEATS, PATIENCE = 7, 1.0


@dataclass(frozen=True)
class LayerChoice:
    """How a layer is computed.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of the weights.
    density : float
        Fraction of nonzeros.
    sparse : bool
        Whether it is a sparse matrix.
    dense_seconds, sparse_seconds : float or None
        Time of one batch, where it was measured.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    sparse: bool
    dense_seconds: float | None = None
    sparse_seconds: float | None = None


class SparseNetwork:
    """A network that computes the same with sparse matrices where these are faster.

    Parameters
    ----------
    network : Network
    density_threshold : float, optional
        Layers with at most this fraction of nonzeros are sparse: 1 for all of them. 0.05 when
        omitted, see the benchmark ``inference``.
    measure : bool
        Time every layer once in both forms, on random signals, with the BLAS threads in force, and
        take the faster. Choices, and with them the last bits of results, may differ between runs.
    batch_size : int
        Samples that are evaluated, and measured, at once.

    Attributes
    ----------
    choices : tuple of LayerChoice
        How each layer is computed.
    batch_size : int

    Raises
    ------
    ProblemError
        If it is no network, or one of unknown input shape is to be measured.
    SettingsError
        If a setting is out of range, or a threshold and a measurement are asked for.

    Notes
    -----
    Outputs equal those of the network to rounding, since sums have another order. Sparse layers
    hold no dense weights; of a convolution, the patches of a block of samples are in memory.

    Examples
    --------
    >>> from nettrim_solver.network import Activate, Dense, Network
    >>> W = np.where(np.arange(2000).reshape(50, 40) % 37, 0, 0.5)
    >>> network = Network([Dense(W, name="hidden"), Activate("relu"), Dense(np.ones((40, 2)))])
    >>> fast = SparseNetwork(network)
    >>> fast
    SparseNetwork((50,) -> (2,), 1 of 2 layers sparse)
    >>> bool(np.allclose(fast(np.eye(50)), network(np.eye(50))))
    True
    >>> print(fast.table())
    layer    shape    nonzero %  computed  dense ms  sparse ms
    hidden   50 x 40  2.75       sparse    -         -
    dense_0  40 x 2   100.00     dense     -         -
    """

    def __init__(
        self,
        network: Network,
        *,
        density_threshold: float | None = None,
        measure: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        _check(network, density_threshold, measure, batch_size)
        threshold = DENSITY_THRESHOLD if density_threshold is None else density_threshold
        self.batch_size = batch_size
        changes: dict[str, Operation] = {}
        choices = []
        for layer in network.layers:
            density = layer.nnz / layer.W.size
            choice = LayerChoice(layer.name, layer.W.shape, density, density <= threshold)
            if measure and network.shapes is not None:
                shape = network.shapes[layer.inputs[0]]
                choice = _measured(choice, layer, network.dtype, (batch_size, *shape))
            if choice.sparse:
                changes[layer.name] = sparse_layer(layer)
            choices.append(choice)
        self.choices = tuple(choices)
        self._evaluated = _Evaluated(network, changes)

    def __call__(self, X: Any, batch_size: int | None = None) -> NDArray[Any]:
        """Return the network's output, shape (n_samples, ...); see :meth:`.Network.__call__`."""
        return self._evaluated(X, self.batch_size if batch_size is None else batch_size)

    def table(self) -> str:
        """Return a table with a line per layer."""
        rows = [["layer", "shape", "nonzero %", "computed", "dense ms", "sparse ms"]]
        for one in self.choices:
            rows.append([
                one.name, " x ".join(map(str, one.shape)), f"{100 * one.density:.2f}",
                "sparse" if one.sparse else "dense",
                _milliseconds(one.dense_seconds), _milliseconds(one.sparse_seconds),
            ])  # fmt: skip
        return aligned(rows)

    def __repr__(self) -> str:
        shapes = self._evaluated.shapes
        ends = ""
        if shapes is not None:
            ends = f"{self._evaluated.input_shape} -> {shapes[self._evaluated.output.name]}, "
        n_sparse = sum(one.sparse for one in self.choices)
        return f"SparseNetwork({ends}{n_sparse} of {len(self.choices)} layers sparse)"


class _Evaluated(Network):
    """A network with other operations in place of some layers, and the dtype of all of them."""

    def __init__(self, network: Network, changes: Mapping[str, Operation]) -> None:
        super().__init__(
            [changes.get(op.name, op) for op in network.operations], network.input_shape
        )
        self._dtype = network.dtype

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype


# Operations -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class SparseDense(Operation):
    """``x W + b`` with a sparse W.

    Attributes
    ----------
    matrix : csr_array of shape (n_outputs, n_inputs)
        W transposed.
    b : ndarray of shape (n_outputs,) or None
    """

    matrix: Any
    b: Any = None

    def _output_shape(self, *shapes: Shape) -> Shape:
        n_outputs, n_inputs = self.matrix.shape
        if shapes[0] != (n_inputs,):
            raise self.mismatch(f"({n_inputs},)", shapes[0])
        return (n_outputs,)

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        # Left transposed: the next sparse layer takes it as it is.
        Z: NDArray[Any] = (self.matrix @ inputs[0].T).T
        if self.b is not None:
            Z += self.b
        return Z


@dataclass(frozen=True, eq=False, repr=False)
class SparseConv2d(Operation):
    """A 2-d convolution with sparse filters.

    Attributes
    ----------
    matrices : tuple of csr_array of shape (n_filters / groups, n_channels / groups * kh * kw)
        The filters of every group, one per row.
    b : ndarray of shape (n_filters,) or None
    window : Window
    """

    matrices: tuple[Any, ...]
    b: Any
    window: Window

    def _output_shape(self, *shapes: Shape) -> Shape:
        channels, *size = self.image_shape(shapes[0])
        kh, kw = self.window.kernel
        expected = len(self.matrices) * self.matrices[0].shape[1] // (kh * kw)
        if channels != expected:
            raise self.mismatch(f"({expected}, height, width)", shapes[0])
        n_filters = sum(matrix.shape[0] for matrix in self.matrices)
        return (n_filters, *window_places(self, self.window, (size[0], size[1])))

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (images,) = inputs
        views = self.window.views(self.window.pad(images))
        n, channels, height, width, kh, kw = views.shape
        each, filters = channels // len(self.matrices), self.matrices[0].shape[0]
        shape = (n, filters * len(self.matrices), height, width)
        Z = np.empty(shape, np.result_type(images, self.matrices[0].dtype))
        for samples in sample_blocks(n, channels * kh * kw * height * width):
            for group, matrix in enumerate(self.matrices):
                seen = views[samples, group * each : (group + 1) * each]
                patches = seen.transpose(1, 4, 5, 0, 2, 3).reshape(each * kh * kw, -1)
                product = (matrix @ patches).reshape(filters, -1, height, width)
                Z[samples, group * filters : (group + 1) * filters] = product.swapaxes(0, 1)
        if self.b is not None:
            Z += self.b[:, None, None]
        return Z


def sparse_layer(layer: Layer) -> Operation:
    """Return a layer as an operation with sparse matrices.

    Raises
    ------
    ProblemError
        If it is neither :class:`.Dense` nor :class:`.Conv2d`.
    """
    matrices = tuple(sp.csr_array(matrix.T) for matrix in layer.matrices())
    if isinstance(layer, Dense):
        return SparseDense(matrices[0], layer.b, name=layer.name, inputs=layer.inputs)
    if isinstance(layer, Conv2d):
        return SparseConv2d(
            matrices, layer.b, layer.window, name=layer.name, inputs=layer.inputs
        )  # fmt: skip
    raise ProblemError(f"{layer.label} must be a Dense or a Conv2d to be evaluated sparse")


# Choices --------------------------------------------------------------------------------------


def _measured(
    choice: LayerChoice, layer: Layer, dtype: np.dtype[Any], shape: Shape
) -> LayerChoice:  # fmt: skip
    """Return the choice after both forms have computed a batch of this shape in turn."""
    X = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    forms = (layer, sparse_layer(layer))
    for form in forms:
        form.apply(X)
    best = [np.inf, np.inf]
    started = time.perf_counter()
    for _ in range(REPEATS):
        for i, form in enumerate(forms):
            begun = time.perf_counter()
            form.apply(X)
            best[i] = min(best[i], time.perf_counter() - begun)
        if time.perf_counter() - started > PATIENCE:
            break
    return LayerChoice(choice.name, choice.shape, choice.density, best[1] < best[0], *best)


def _check(
    network: Any, density_threshold: Any, measure: Any, batch_size: Any
) -> None:  # fmt: skip
    check_network(network)
    check_flag("measure", measure)
    check_integer("batch_size", batch_size, 1)
    if density_threshold is not None:
        check_number("density_threshold", density_threshold, 0.0, np.inf, closed=True)
        if measure:
            raise SettingsError(
                f"measure=True replaces a threshold, but density_threshold was {density_threshold}"
            )
    if measure and network.shapes is None:
        raise ProblemError(
            "network must have an input_shape to be measured, but its is unknown; give it as "
            "Network(operations, input_shape)"
        )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"

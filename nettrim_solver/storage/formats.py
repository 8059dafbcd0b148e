r"""Arrays with many zeros in fewer bytes, and back bit for bit.

An array of n numbers is read in C order. Of its numbers those are *kept* whose bits are not all
zero: ``-0.0`` and every NaN with its payload are kept like any other number, and only ``+0.0`` is
left out. So what comes back has the bits of what went in, for float16, float32 and float64.

- ``dense``: all numbers.
- ``csr``: the kept numbers of the matrix (first axis, all other axes), the column of each, and
  where every row begins; in the narrowest unsigned integers that hold them.
- ``bitmask``: the kept numbers, and one bit per number.
- ``relative``: the kept numbers, and before each the count of zeros that it skips, in g bits (Han
  et al., 2016, section 2: g = 5 for dense layers). Where more than :math:`2^g - 1` zeros are
  skipped, a zero is stored as a filler. A gap of z zeros takes :math:`\lfloor z / 2^g \rfloor` of
  them.

References
----------
S. Han, H. Mao, W. J. Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning,
Trained Quantization and Huffman Coding", ICLR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import as_array, check_choice, check_integer
from ..exceptions import ProblemError, SettingsError

#: In the order of preference where two take the same bytes.
FORMATS = ("dense", "bitmask", "csr", "relative")

#: Bits of a gap: those of Han et al. for dense layers, and the most that are taken.
GAP_BITS = 5
MAX_GAP_BITS = 16

ITEM_SIZES = (2, 4, 8)


class Bytes(NamedTuple):
    """What an array takes in one format: kept numbers, their places, and fillers with theirs."""

    values: int
    indices: int
    fillers: int

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self)


@dataclass(frozen=True, eq=False)
class Packed:
    """An array in one of the formats.

    Attributes
    ----------
    format : str
        One of ``FORMATS``.
    shape : tuple of int
    arrays : mapping of str to ndarray
        ``values``, with one axis; and ``indices`` and ``indptr``, or ``mask``, or ``gaps``.
    gap_bits : int or None
        Bits per gap of ``relative``.
    """

    format: str
    shape: tuple[int, ...]
    arrays: Mapping[str, NDArray[Any]]
    gap_bits: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


class _Pattern(NamedTuple):
    """An array as its bits, and the positions (in C order) where these are not all zero."""

    bits: NDArray[Any]
    positions: NDArray[np.int64]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_length(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def kept(self) -> NDArray[Any]:
        return self.bits[self.positions].view(self.dtype)

    @property
    def gaps(self) -> NDArray[np.int64]:
        """How many zeros stand before each kept number."""
        return np.diff(self.positions, prepend=-1) - 1


def pack(array: Any, format: str = "smallest", gap_bits: int | None = GAP_BITS) -> Packed:
    """Return an array in a sparse format, see the module's docstring.

    Parameters
    ----------
    array : array_like of float16, float32 or float64
        With at least one axis. NaN and infinite numbers are kept as they are.
    format : str
        One of ``FORMATS``, or ``"smallest"``.
    gap_bits : int or None
        Bits per gap of ``relative``, from 1 to 16; None takes the number that needs fewest bytes.

    Raises
    ------
    ProblemError
        If the array holds something else.
    SettingsError
        If a setting is none of those named.

    Examples
    --------
    >>> import numpy as np
    >>> packed = pack(np.array([[0, 1.5, 0, 0], [0, 0, 0, -2]], np.float32), "relative")
    >>> packed.arrays["values"], packed.nbytes
    (array([ 1.5, -2. ], dtype=float32), 10)
    >>> unpack(packed)
    array([[ 0. ,  1.5,  0. ,  0. ],
           [ 0. ,  0. ,  0. , -2. ]], dtype=float32)
    """
    check_format(format, gap_bits)
    pattern = _pattern(array)
    if format == "smallest":
        format = min(FORMATS, key=lambda name: _COUNT[name](pattern, gap_bits).total)
    return _PACK[format](pattern, gap_bits)


def unpack(packed: Packed) -> NDArray[Any]:
    """Return the array that was packed, of the same dtype and bits.

    Raises
    ------
    ProblemError
        If the arrays contradict each other or the shape.
    """
    if packed.format not in FORMATS:
        raise ProblemError(f"format must be one of {list(FORMATS)}, but was {packed.format!r}")
    sizes = packed.shape
    if not sizes or not all(type(n) is int and n >= 0 for n in sizes) or math.prod(sizes) >> 62:
        raise ProblemError(f"shape must hold sizes that arrays can have, but was {sizes!r}")
    values = _part(packed, "values")
    if values.dtype.kind != "f" or values.dtype.itemsize not in ITEM_SIZES:
        raise ProblemError(f"values must be float16, float32 or float64, but are {values.dtype}")
    if packed.format == "dense":
        _agree(values.size == math.prod(packed.shape), packed)
        return values.reshape(packed.shape).copy()
    positions = _POSITIONS[packed.format](packed)
    _agree(len(positions) == len(values), packed)
    try:
        bits = np.zeros(math.prod(packed.shape), dtype=_unsigned(values.dtype))
    except (MemoryError, ValueError):
        raise ProblemError(
            f"an array of shape {packed.shape} must fit into memory, but does not"
        ) from None
    bits[positions] = values.view(bits.dtype)
    return bits.view(values.dtype).reshape(packed.shape)


def count_bytes(array: Any, gap_bits: int | None = GAP_BITS) -> dict[str, Bytes]:
    """Return the bytes that :func:`pack` would take in every format, without packing.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.zeros(1000, np.float32)
    >>> W[[0, 999]] = 1
    >>> count_bytes(W)["relative"]
    Bytes(values=8, indices=2, fillers=143)
    """
    check_format("smallest", gap_bits)
    pattern = _pattern(array)
    return {name: _COUNT[name](pattern, gap_bits) for name in FORMATS}


def check_format(format: str, gap_bits: int | None) -> None:
    """Raise SettingsError unless :func:`pack` can do that."""
    check_choice("format", format, (*FORMATS, "smallest"))
    if gap_bits is None:
        return
    check_integer("gap_bits", gap_bits, 1)
    if gap_bits > MAX_GAP_BITS:
        raise SettingsError(f"gap_bits must be at most {MAX_GAP_BITS}, but was {gap_bits!r}")


def _pattern(array: Any) -> _Pattern:
    array = as_array("array", array)
    if array.dtype.kind != "f" or array.dtype.itemsize not in ITEM_SIZES or not array.ndim:
        raise ProblemError(
            "array must hold float16, float32 or float64 along one axis or more, but has dtype "
            f"{array.dtype} and shape {array.shape}"
        )
    bits = np.ascontiguousarray(array).reshape(-1).view(_unsigned(array.dtype))
    return _Pattern(bits, np.flatnonzero(bits), array.shape, array.dtype)


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the integers that have the bits, and the byte order, of floats."""
    return np.dtype(f"{dtype.byteorder}u{dtype.itemsize}")


# Counting -------------------------------------------------------------------------------------


def _count_dense(pattern: _Pattern, gap_bits: int | None) -> Bytes:
    return Bytes(pattern.bits.nbytes, 0, 0)


def _count_bitmask(pattern: _Pattern, gap_bits: int | None) -> Bytes:
    return Bytes(_kept_bytes(pattern), _octets(pattern.bits.size), 0)


def _count_csr(pattern: _Pattern, gap_bits: int | None) -> Bytes:
    nnz = len(pattern.positions)
    indices, indptr = _index_types(pattern)
    places = nnz * indices.itemsize + (pattern.shape[0] + 1) * indptr.itemsize
    return Bytes(_kept_bytes(pattern), places, 0)


def _count_relative(pattern: _Pattern, gap_bits: int | None) -> Bytes:
    gaps, nnz = pattern.gaps, len(pattern.positions)
    found = []
    for width in range(1, MAX_GAP_BITS + 1) if gap_bits is None else [gap_bits]:
        n_fillers = int(np.sum(gaps >> width))
        indices = _octets(nnz * width)
        more = _octets((nnz + n_fillers) * width) - indices
        fillers = n_fillers * pattern.dtype.itemsize + more
        found.append(Bytes(_kept_bytes(pattern), indices, fillers))
    return min(found, key=sum)


def _kept_bytes(pattern: _Pattern) -> int:
    return len(pattern.positions) * pattern.dtype.itemsize


def _octets(n_bits: int) -> int:
    return -(-n_bits // 8)


def _index_types(pattern: _Pattern) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return the narrowest types for a column and for a count of kept numbers."""
    last = max(0, pattern.row_length - 1)
    return np.min_scalar_type(last), np.min_scalar_type(len(pattern.positions))


# Packing --------------------------------------------------------------------------------------


def _pack_dense(pattern: _Pattern, gap_bits: int | None) -> Packed:
    return Packed("dense", pattern.shape, {"values": pattern.bits.view(pattern.dtype).copy()})


def _pack_bitmask(pattern: _Pattern, gap_bits: int | None) -> Packed:
    mask = np.packbits(pattern.bits != 0, bitorder="little")
    return Packed("bitmask", pattern.shape, {"values": pattern.kept, "mask": mask})


def _pack_csr(pattern: _Pattern, gap_bits: int | None) -> Packed:
    length = pattern.row_length
    index_type, pointer_type = _index_types(pattern)
    starts = np.searchsorted(pattern.positions, np.arange(pattern.shape[0] + 1) * length)
    arrays = {
        "values": pattern.kept,
        "indices": (pattern.positions % max(1, length)).astype(index_type),
        "indptr": starts.astype(pointer_type),
    }
    return Packed("csr", pattern.shape, arrays)


def _pack_relative(pattern: _Pattern, gap_bits: int | None) -> Packed:
    if gap_bits is None:
        widths = range(1, MAX_GAP_BITS + 1)
        gap_bits = min(widths, key=lambda width: _count_relative(pattern, width).total)
    gaps = pattern.gaps
    places = np.cumsum((gaps >> gap_bits) + 1) - 1
    n_entries = int(places[-1]) + 1 if len(places) else 0
    largest = (1 << gap_bits) - 1
    codes = np.full(n_entries, largest, dtype=np.uint16)
    codes[places] = gaps & largest
    bits = np.zeros(n_entries, dtype=pattern.bits.dtype)
    bits[places] = pattern.bits[pattern.positions]
    stream = np.empty((n_entries, gap_bits), dtype=np.uint8)
    for place in range(gap_bits):
        stream[:, place] = (codes >> place) & 1
    arrays = {
        "values": bits.view(pattern.dtype),
        "gaps": np.packbits(stream, bitorder="little"),
    }
    return Packed("relative", pattern.shape, arrays, gap_bits)


# Unpacking: the positions of the values -------------------------------------------------------


def _bitmask_positions(packed: Packed) -> NDArray[np.int64]:
    size = math.prod(packed.shape)
    mask = _part(packed, "mask", np.uint8)
    _agree(len(mask) == _octets(size), packed)
    stream = np.unpackbits(mask, bitorder="little")
    _agree(not stream[size:].any(), packed)
    return np.flatnonzero(stream)


def _csr_positions(packed: Packed) -> NDArray[np.int64]:
    indices, indptr = _part(packed, "indices"), _part(packed, "indptr")
    rows, length = packed.shape[0], math.prod(packed.shape[1:])
    for name, part in (("indices", indices), ("indptr", indptr)):
        if part.dtype.kind != "u":
            raise ProblemError(f"{name} must be unsigned integers, but are {part.dtype}")
    _agree(len(indptr) == rows + 1 and indptr[0] == 0 and indptr[-1] == len(indices), packed)
    _agree(bool(np.all(indptr[:-1] <= indptr[1:])), packed)
    _agree(not len(indices) or int(indices.max()) < length, packed)
    starts = indptr.astype(np.int64)
    positions = np.repeat(np.arange(rows) * length, starts[1:] - starts[:-1])
    positions += indices.astype(np.int64)
    _agree(bool(np.all(np.diff(positions) > 0)), packed)
    return positions


def _relative_positions(packed: Packed) -> NDArray[np.int64]:
    width, gaps = packed.gap_bits, _part(packed, "gaps", np.uint8)
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= MAX_GAP_BITS:
        raise ProblemError(
            f"gap_bits must be an integer from 1 to {MAX_GAP_BITS}, but was {width!r}"
        )
    n_entries = len(_part(packed, "values"))
    _agree(len(gaps) == _octets(n_entries * width), packed)
    stream = np.unpackbits(gaps, bitorder="little")
    _agree(not stream[n_entries * width :].any(), packed)
    steps = np.ones(n_entries, dtype=np.int64)
    for place in range(width):
        steps += stream[place : n_entries * width : width].astype(np.int64) << place
    positions = np.cumsum(steps) - 1
    _agree(not n_entries or int(positions[-1]) < math.prod(packed.shape), packed)
    return positions


def _part(packed: Packed, name: str, dtype: Any = None) -> NDArray[Any]:
    """Return one of the arrays, with one axis, or raise."""
    part = packed.arrays.get(name)
    if part is None:
        raise ProblemError(f"a {packed.format} array must have {name}, but has none")
    if part.ndim != 1 or (dtype is not None and part.dtype != dtype):
        wanted = "" if dtype is None else f" of {np.dtype(dtype)}"
        raise ProblemError(
            f"{name} must have one axis{wanted}, but has shape {part.shape} and dtype {part.dtype}"
        )
    return part


def _agree(condition: bool, packed: Packed) -> None:
    if not condition:
        sizes = {name: array.shape for name, array in packed.arrays.items()}
        raise ProblemError(
            f"the arrays {sizes} are no {packed.format} form of an array of shape {packed.shape}"
        )


_COUNT: dict[str, Callable[[_Pattern, int | None], Bytes]] = {
    "dense": _count_dense,
    "bitmask": _count_bitmask,
    "csr": _count_csr,
    "relative": _count_relative,
}
_PACK: dict[str, Callable[[_Pattern, int | None], Packed]] = {
    "dense": _pack_dense,
    "bitmask": _pack_bitmask,
    "csr": _pack_csr,
    "relative": _pack_relative,
}
_POSITIONS: dict[str, Callable[[Packed], NDArray[np.int64]]] = {
    "bitmask": _bitmask_positions,
    "csr": _csr_positions,
    "relative": _relative_positions,
}

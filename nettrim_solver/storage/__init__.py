"""Pruned weights in files and arrays that are smaller, with every byte counted.

:func:`save_sparse` and :func:`load_sparse` keep a whole network, :func:`size_report` says what each
format would take, and :func:`pack` and :func:`unpack` do the same to a single array.
"""

from .file import load_sparse, save_sparse
from .formats import FORMATS, Bytes, Packed, count_bytes, pack, unpack
from .sizes import LayerSizes, SizeReport, size_report

__all__ = [
    "FORMATS",
    "Bytes",
    "LayerSizes",
    "Packed",
    "SizeReport",
    "count_bytes",
    "load_sparse",
    "pack",
    "save_sparse",
    "size_report",
    "unpack",
]

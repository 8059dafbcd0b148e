"""The few BLAS and LAPACK routines of the polish, called so that other threads may run meanwhile.

SciPy's own wrappers hold the interpreter's lock while they compute, so that workers would wait for
each other. Its Cython interface hands out the addresses of the same routines, and a call of an
address through ctypes releases the lock. All matrices are lower triangles in Fortran order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

Matrix = NDArray[Any]


def add_gram(sign: float, block: Matrix, H: Matrix) -> None:
    """Add ``sign block^T block`` to H, in place; block has shape (k, n), C order."""
    k, n = block.shape
    real = _real(H)
    _routine("syrk", H.dtype)(
        b"L", b"N", _int(n), _int(k), _by(real(sign)), _at(block), _int(n), _by(real(1.0)), _at(H),
        _int(n),
    )  # fmt: skip


def factorise(H: Matrix) -> bool:
    """Replace H by its Cholesky factor; return whether H is positive definite."""
    n, info = _int(len(H)), ctypes.c_int()
    _routine("potrf", H.dtype)(b"L", n, _at(H), n, ctypes.byref(info))
    return info.value == 0


def solve_rows(factor: Matrix, right: Matrix) -> None:
    """Solve for the rows of `right`, shape (k, n), C order, in place.

    For a row or two LAPACK's blocked solution is slower than two triangular ones.
    """
    n, one = _int(len(factor)), _int(1)
    if len(right) > 2:
        info = ctypes.c_int()
        _routine("potrs", factor.dtype)(
            b"L", n, _int(len(right)), _at(factor), n, _at(right), n, ctypes.byref(info)
        )
        return
    trsv = _routine("trsv", factor.dtype)
    for row in right:
        for side in (b"N", b"T"):
            trsv(b"L", side, b"N", n, _at(factor), n, _at(row), one)


@cache
def _routine(name: str, dtype: np.dtype[Any]) -> Callable[..., None]:
    module = cython_lapack if name.startswith("po") else cython_blas
    capsule = module.__pyx_capi__[("s" if dtype == np.float32 else "d") + name]
    object_, text = ctypes.py_object, ctypes.c_char_p
    signature = ctypes.PYFUNCTYPE(text, object_)(("PyCapsule_GetName", ctypes.pythonapi))
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, object_, text)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    return ctypes.CFUNCTYPE(None)(pointer(capsule, signature(capsule)))


def _real(array: Matrix) -> Any:
    return ctypes.c_float if array.dtype == np.float32 else ctypes.c_double


def _at(array: Matrix) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


_by = ctypes.byref

"""The few BLAS and LAPACK routines of the polish, called so that other threads may run meanwhile.

SciPy's own wrappers hold the interpreter's lock while they compute, so that workers would wait for
each other. Its Cython interface hands out the addresses of the same routines, and a call of an
address through ctypes releases the lock. Where that interface is not the expected one (64-bit
integers, another interpreter), or an array is not laid out for it, the wrappers do the work.

All matrices are lower triangles in Fortran order, float32 or float64.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack, get_blas_funcs, get_lapack_funcs

from .. import polish_kernels

Matrix = NDArray[Any]

#: Kinds of the arguments, all of them pointers: c for char, i for int, r for the matrix's dtype.
ARGUMENTS = {"syrk": "cciirrirri", "potrf": "cirii", "trsm": "cccciirriri"}


def add_gram(sign: float, block: Matrix, H: Matrix) -> None:
    """Add ``sign block^T block`` to H, in place; block has shape (k, n)."""
    block = np.ascontiguousarray(block, dtype=H.dtype)
    syrk = _routine("syrk", H.dtype) if H.flags.f_contiguous else None
    if syrk is None:
        H[:] = get_blas_funcs("syrk", (H,))(sign, block.T, beta=1.0, c=H, lower=1)
        return
    k, n = block.shape
    real = ctypes.c_float if H.dtype == np.float32 else ctypes.c_double
    syrk(
        b"L", b"N", _int(n), _int(k), ctypes.byref(real(sign)), _at(block), _int(n),
        ctypes.byref(real(1.0)), _at(H), _int(n),
    )  # fmt: skip


def factorise(H: Matrix) -> bool:
    """Replace H by its Cholesky factor; return whether H is positive definite."""
    potrf = _routine("potrf", H.dtype) if H.flags.f_contiguous else None
    if potrf is None:
        H[:], failed = get_lapack_funcs("potrf", (H,))(H, lower=1, clean=0)
        return bool(failed == 0)
    n, info = _int(len(H)), ctypes.c_int()
    potrf(b"L", n, _at(H), n, ctypes.byref(info))
    return info.value == 0


def solve_rows(factor: Matrix, right: Matrix) -> None:
    """Solve ``factor x = b`` for the rows b of `right`, shape (k, n), in place.

    For a row or two the blocked routine is slower than a plain loop.
    """
    if right.size == 0:
        return
    fits = factor.flags.f_contiguous and right.flags.c_contiguous and factor.dtype == right.dtype
    if fits and len(right) <= 2:
        polish_kernels.forward_rows(factor.T, right)
        return
    trsm = _routine("trsm", factor.dtype) if fits else None
    if trsm is None:
        right[:] = get_blas_funcs("trsm", (factor,))(1.0, factor, right.T, lower=1).T
        return
    n, k = _int(len(factor)), _int(len(right))
    real = ctypes.c_float if factor.dtype == np.float32 else ctypes.c_double
    trsm(
        b"L", b"L", b"N", b"N", n, k, ctypes.byref(real(1.0)), _at(factor), n, _at(right), n
    )  # fmt: skip


@cache
def _routine(name: str, dtype: np.dtype[Any]) -> Callable[..., None] | None:
    """Return a routine that releases the lock, or None where SciPy has none of this signature."""
    letter = "s" if dtype == np.float32 else "d"
    module = cython_lapack if name.startswith("po") else cython_blas
    object_, text = ctypes.py_object, ctypes.c_char_p
    try:
        capsule = module.__pyx_capi__[letter + name]
        name_of = ctypes.PYFUNCTYPE(text, object_)(("PyCapsule_GetName", ctypes.pythonapi))
        pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, object_, text)(
            ("PyCapsule_GetPointer", ctypes.pythonapi)
        )
    except (AttributeError, KeyError):
        return None
    signature = name_of(capsule)
    # A capsule is named after its signature; Cython calls the real types ..._s and ..._d there.
    kinds = {"char": "c", "int": "i", "s": "r", "d": "r", "float": "r", "double": "r"}
    types = re.findall(r"(\w+) \*", signature.decode())
    found = "".join(kinds.get(kind.rsplit("_", 1)[-1], "?") for kind in types)
    if found != ARGUMENTS[name]:
        return None
    return ctypes.CFUNCTYPE(None)(pointer_of(capsule, signature))


def _at(array: Matrix) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))

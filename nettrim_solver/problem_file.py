"""Problems on disk: one ``.npz`` file of plain arrays, written atomically, never pickled.

The file holds the constructor's arguments under their own names; a sparse X as ``X_data``,
``X_indices``, ``X_indptr``, ``X_shape`` (CSR); text and flags in one JSON string, ``settings``.
"""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .activations import ACTIVATIONS
from .exceptions import ProblemError, ProblemFileError
from .problem_checks import csr_fault

if TYPE_CHECKING:
    from .problem import Problem

FORMAT = "nettrim_solver.problem/1"
ARRAYS = ("X", "Y", "W", "b", "Z", "lower", "upper", "weights", "epsilon", "lambda_", "tolerance")
WHAT = "a problem written by nettrim_solver"
TEXTS = ("radius", "formulation", "intercept")

#: Most columns of a sparse X in a file: what is not stored takes memory all the same, in weights,
#: norms and means. A dense X is as large as its file.
MOST_COLUMNS = 4_000_000

#: Bytes that an archive may unpack to, and the ratio to its own size allowed beyond that.
MOST_UNPACKED, MOST_RATIO = 2**28, 100


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` once the block ends well, all or nothing.

    Raises
    ------
    OSError
        If the folder is missing or not writable; an existing file is then left as it was. If the
        path is that of a device or pipe.
    """
    target = Path(path)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OSError(errno.EINVAL, "it is no ordinary file", os.fspath(target))
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent or ".")
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is None:
            raise
        # The system names the temporary file, which nobody has heard of.
        raise OSError(error.errno, error.strerror, os.fspath(target)) from error


def save_arrays(path: str | os.PathLike[str], arrays: dict[str, Any]) -> None:
    """Write named arrays to an ``.npz`` file under exactly this name, all or nothing.

    Raises
    ------
    OSError
        As :func:`whole_file`.
    """
    with whole_file(path) as stream:
        np.savez(stream, **arrays)


def save_problem(problem: Problem, path: str | os.PathLike[str]) -> None:
    """Write a problem to an ``.npz`` file (see the module's docstring), atomically."""
    arguments = problem._arguments()
    if problem.activation is not None and type(problem.activation) not in ACTIVATIONS.values():
        raise ProblemError(
            f"activation must be one of {sorted(ACTIVATIONS)} to be saved, "
            f"but was {problem.activation!r}"
        )
    settings: dict[str, Any] = {"format": FORMAT} | {name: arguments[name] for name in TEXTS}
    if problem.activation is not None:
        settings["activation"] = problem.activation.name
        settings["activation_parameters"] = problem.activation.parameters()
    arrays = {name: arguments[name] for name in ARRAYS if arguments[name] is not None}
    if sp.issparse(problem.X):
        X = arrays.pop("X")
        arrays |= {"X_data": X.data, "X_indices": X.indices, "X_indptr": X.indptr}
        arrays["X_shape"] = np.array(X.shape)
    arrays["settings"] = np.array(json.dumps(settings))
    save_arrays(path, arrays)


def load_problem(path: str | os.PathLike[str]) -> Problem:
    """Read a problem from an ``.npz`` file.

    Raises
    ------
    ProblemFileError
        If the file is missing, truncated, pickled, or not such a file.
    ProblemError
        If its arrays do not make a valid problem.
    """
    from .problem import Problem

    try:
        arrays = load_arrays(path, WHAT)
        settings = json.loads(str(arrays.pop("settings")[()]))
        if settings.pop("format") != FORMAT:
            raise ProblemFileError(f"{path} is not of the format {FORMAT!r}")
        arguments: dict[str, Any] = {name: settings[name] for name in TEXTS}
        if "activation" in settings:
            activation = ACTIVATIONS[settings["activation"]]
            arguments["activation"] = activation(**settings["activation_parameters"])
        if "X_data" in arrays:
            parts = [arrays.pop(f"X_{part}") for part in ("data", "indices", "indptr", "shape")]
            arguments["X"] = checked_csr(*parts)
        scalars = {k: float(v) for k, v in arrays.items() if v.ndim == 0 and k in ARRAYS}
        arguments |= {k: arrays[k] for k in ARRAYS if k in arrays} | scalars
        if "X" not in arguments:
            raise ProblemFileError(f"{path} holds no X")
    except ProblemError:
        raise
    except Exception as error:
        # The settings of a file that another program wrote may be anything.
        raise unreadable(path, WHAT, error) from None
    return Problem(**arguments)


def checked_csr(data: Any, indices: Any, indptr: Any, shape: Any) -> Any:
    """Return a CSR array whose parts were checked against each other, before scipy uses them.

    Raises
    ------
    ValueError
    """
    fault = None
    if shape.shape != (2,) or shape.dtype.kind not in "iu":
        fault = "X_shape must be two integers"
    elif not (0 < int(shape[0]) and 0 < int(shape[1]) <= MOST_COLUMNS):
        fault = f"X_shape must have 1 to {MOST_COLUMNS:,} columns, but is {shape.tolist()}"
    fault = fault or csr_fault(data, indices, indptr, int(shape[0]), int(shape[1]))
    if fault is not None:
        raise ValueError(f"X is not a sparse matrix in CSR form: {fault}")
    parts = data, indices.astype(np.int64), indptr.astype(np.int64)
    return sp.csr_array(parts, shape=(int(shape[0]), int(shape[1])))


def check_sizes(archive: zipfile.ZipFile, path: Any) -> None:
    """Raise unless an archive is sound and its arrays as large as their headers say.

    A member of a few compressed bytes may ask for any amount of memory: so the sizes that headers
    promise are looked at before anything is read, and held against what the file itself takes.

    Raises
    ------
    ProblemFileError
    """
    packed = sum(member.compress_size for member in archive.infolist())
    total = sum(member.file_size for member in archive.infolist())
    if total > max(MOST_UNPACKED, MOST_RATIO * packed):
        raise ProblemFileError(
            f"{path} unpacks to {total:,} bytes, {total // max(packed, 1)} times its size; more "
            f"than {MOST_RATIO} times is refused beyond {MOST_UNPACKED:,} bytes"
        )
    # numpy reads as many bytes as a header asks for, so a damaged header that asks for fewer than
    # there are would pass without a look at the checksum.
    damaged = archive.testzip()
    if damaged is not None:
        raise ProblemFileError(f"{path} is damaged: the checksum of {damaged!r} is wrong")
    for member in archive.infolist():
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            held = math.prod(shape) * dtype.itemsize
            if not dtype.hasobject and held > member.file_size:
                raise ProblemFileError(
                    f"{path}: the header of {member.filename!r} asks for {held:,} bytes of "
                    f"{dtype}, but the file has {member.file_size:,}"
                )


def load_arrays(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read all arrays of an archive whose checksums are right.

    Parameters
    ----------
    path : path
    what : str
        What the file should be, for messages.

    Raises
    ------
    ProblemFileError
        If the file is missing, damaged, pickled, or no such archive.
    """
    try:
        # Opened here, because np.load leaves the file open when it is no archive.
        with open(path, "rb") as stream:
            if stream.read(2) != b"PK":
                raise ProblemFileError(f"{path} is not an .npz archive (pickles are refused)")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                check_sizes(file.zip, path)
                return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ProblemFileError(f"there is no file {path}") from None
    except OSError as error:
        if error.filename is None:  # it comes from what the file holds
            raise unreadable(path, what, error) from None
        raise ProblemFileError(f"{path} cannot be read: {error.strerror}") from None
    except ProblemError:
        raise
    except Exception as error:
        # A damaged archive makes zipfile, the decompressors and numpy's header parser raise nearly
        # anything: RuntimeError, MemoryError, tokenize and lzma errors, and more.
        raise unreadable(path, what, error) from None


def unreadable(path: Any, what: str, error: Exception) -> ProblemFileError:
    """Return the error of a file that is not what it should be."""
    return ProblemFileError(f"{path} is not {what} (pickles are refused): {error}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Problems on disk: one ``.npz`` file of plain arrays, written atomically, never pickled.

The file holds the constructor's arguments under their own names; a sparse X as ``X_data``,
``X_indices``, ``X_indptr``, ``X_shape`` (CSR); text and flags in one JSON string, ``settings``.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import secrets
import socket
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .activations import ACTIVATIONS
from .exceptions import ProblemError, ProblemFileError

if TYPE_CHECKING:
    from .problem import Problem

FORMAT = "nettrim_solver.problem/1"
ARRAYS = ("X", "Y", "W", "b", "Z", "lower", "upper", "weights", "epsilon", "lambda_", "tolerance")
WHAT = "a problem written by nettrim_solver"
TEXTS = ("radius", "formulation", "intercept")

#: The arrays of a sparse matrix.
CSR_PARTS = ("data", "indices", "indptr", "shape")

#: What a file may take in memory: so many times its own size, or so many bytes if that is more.
#: Deflated zeros would take a thousand times theirs.
LARGEST_RATIO, SMALL = 100, 64 << 20


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` once the block ends well, all or nothing.

    The content is on the disk before it gets its name. A file that is replaced keeps its mode, and
    a symbolic link is followed. Temporary files that killed writers left in the folder are removed.

    Raises
    ------
    OSError
        If the folder is missing or not writable; an existing file is then left as it was. If the
        path is that of a device or pipe.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OSError(errno.EINVAL, "it is no ordinary file", os.fspath(path))
    try:
        _remove_orphans(target.parent)
        mode = stat.S_IMODE(target.stat().st_mode) if target.is_file() else None
        temporary = target.parent / f"{_prefix()}{os.getpid()}-{secrets.token_hex(4)}.tmp"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        # The system takes the umask out of the mode of a new file.
        handle = os.open(temporary, flags, 0o666 if mode is None else 0o600)
        try:
            with os.fdopen(handle, "w+b") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is None:
            raise
        # The system names the temporary file, which nobody has heard of.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _prefix() -> str:
    """Return what the names of this machine's temporary files begin with."""
    return f".nettrim-{re.sub('[^A-Za-z0-9]', '', socket.gethostname())[:40]}-"


def _remove_orphans(folder: Path) -> None:
    """Remove the temporary files in a folder whose writers, on this machine, are gone."""
    if os.name != "posix":
        return  # There is no harmless way to ask whether a process lives.
    own = re.compile(re.escape(_prefix()) + r"(\d{1,9})-[0-9a-f]{8}\.tmp")
    for name in os.listdir(folder):
        match = own.fullmatch(name)
        if match and not _is_alive(int(match[1])):
            with suppress(OSError):
                (folder / name).unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], deflate: Iterable[str] = ()
) -> None:
    """Write named arrays to an ``.npz`` file under exactly this name, all or nothing.

    Parameters
    ----------
    path : path
    arrays : mapping of str to array_like
    deflate : iterable of str
        Names of arrays that are compressed where that makes them smaller.

    Raises
    ------
    OSError
        As :func:`whole_file`.
    """
    smaller = {}
    for name in deflate:
        member = io.BytesIO()
        np.lib.format.write_array(member, np.asanyarray(arrays[name]), allow_pickle=False)
        if len(zlib.compress(member.getvalue())) < len(member.getvalue()):
            smaller[name] = member.getvalue()
    with whole_file(path) as stream:
        np.savez(stream, **{name: one for name, one in arrays.items() if name not in smaller})
        if smaller:
            with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
                for name, content in smaller.items():
                    # A time of its own, so that the same arrays give the same bytes.
                    entry = zipfile.ZipInfo(f"{name}.npy")
                    archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


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
            parts = {part: arrays.pop(f"X_{part}") for part in CSR_PARTS}
            arguments["X"] = checked_csr("X", parts, allowance(os.path.getsize(path)))
        scalars = {k: float(v) for k, v in arrays.items() if v.ndim == 0 and k in ARRAYS}
        arguments |= {k: arrays[k] for k in ARRAYS if k in arrays} | scalars
        if "X" not in arguments:
            raise ProblemFileError(f"{path} holds no X")
    except ProblemError as error:
        if str(path) in str(error):
            raise
        raise ProblemFileError(f"{path}: {error}") from None
    except Exception as error:
        # The settings of a file that another program wrote may be anything.
        raise unreadable(path, WHAT, error) from None
    return Problem(**arguments)


def allowance(n_bytes: int) -> int:
    """Return how many bytes of memory the content of a file of so many bytes may take."""
    return max(SMALL, LARGEST_RATIO * n_bytes)


def checked_csr(name: str, parts: Mapping[str, NDArray[Any]], most_bytes: int) -> sp.csr_array:
    """Return the matrix of four arrays that somebody else wrote, or raise ProblemError.

    scipy trusts such arrays: its compiled code reads and writes out of bounds for some that its own
    ``check_format`` passes.

    Parameters
    ----------
    name : str
        For messages.
    parts : mapping of str to ndarray
        ``data``, ``indices``, ``indptr`` and ``shape``.
    most_bytes : int
        That a row and a column of 8 bytes per entry may take together: few bytes can claim any
        shape.
    """
    for part, array in parts.items():
        kinds, what = ("fiub", "numbers") if part == "data" else ("iu", "integers")
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise ProblemError(
                f"{name}_{part} must have one axis of {what}, but has shape {array.shape} and "
                f"dtype {array.dtype}"
            )
    data, indices, indptr = parts["data"], parts["indices"], parts["indptr"]
    sizes = [int(n) for n in parts["shape"]]
    if len(sizes) != 2 or min(sizes) < 1 or 8 * sum(sizes) > most_bytes:
        raise ProblemError(
            f"{name}_shape must be two positive numbers that fit the size of the file, but was "
            f"{sizes}"
        )
    n_rows, n_columns = sizes
    most = np.iinfo(np.int64).max
    if len(indptr) != n_rows + 1 or len(indices) != len(data) or np.any(indptr > most):
        raise ProblemError(
            f"{name} of {n_rows} rows must have {n_rows + 1} entries of {name}_indptr and as many "
            f"{name}_indices as {name}_data, but has {len(indptr)}, {len(indices)} and {len(data)}"
        )
    starts = indptr.astype(np.int64)
    if starts[0] != 0 or starts[-1] != len(data) or np.any(np.diff(starts) < 0):
        raise ProblemError(
            f"{name}_indptr must rise from 0 to {len(data)}, the number of entries of {name}_data"
        )
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= n_columns):
        raise ProblemError(
            f"{name}_indices must lie in [0, {n_columns}), but span [{indices.min()}, "
            f"{indices.max()}]"
        )
    return sp.csr_array((data, indices.astype(np.int64), starts), shape=(n_rows, n_columns))


def load_arrays(
    path: str | os.PathLike[str], what: str, most_bytes: float | None = None
) -> dict[str, Any]:
    """Read all arrays of an archive whose checksums are right.

    Parameters
    ----------
    path : path
    what : str
        What the file should be, for messages.
    most_bytes : float, optional
        That the arrays may take in memory; :func:`allowance` when omitted.

    Raises
    ------
    ProblemFileError
        If the file is missing, damaged, pickled, no such archive, or takes too much memory.
    """
    check_path(path)
    try:
        # Opened here, because np.load leaves the file open when it is no archive.
        with open(path, "rb") as stream:
            if stream.read(2) != b"PK":
                raise ProblemFileError(f"{path} is not an .npz archive (pickles are refused)")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                size = sum(member.file_size for member in file.zip.infolist())
                compressed = os.path.getsize(path)
                if size > (allowance(compressed) if most_bytes is None else most_bytes):
                    raise ProblemFileError(
                        f"{path} is compressed {size // compressed} times, and would "
                        f"take {size} bytes of memory; if it is yours, write it with numpy.savez"
                    )
                # numpy reads as many bytes as a header asks for, so a damaged header that asks for
                # fewer than there are would pass without a look at the checksum.
                damaged = file.zip.testzip()
                if damaged is not None:
                    raise ProblemFileError(
                        f"{path} is damaged: the checksum of {damaged!r} is wrong"
                    )
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


def check_path(path: Any) -> None:
    """Raise unless this can be the name of a file."""
    if not isinstance(path, (str, os.PathLike)) or "\0" in os.fspath(path):
        raise ProblemFileError(f"path must be the name of a file, but was {path!r}")


def unreadable(path: Any, what: str, error: Exception) -> ProblemFileError:
    """Return the error of a file that is not what it should be."""
    return ProblemFileError(f"{path} is not {what} (pickles are refused): {error}")

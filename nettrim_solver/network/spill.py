"""Arrays that are filled block by block: in memory, or in a temporary file that leaves no trace."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..exceptions import ProblemError


class Spill:
    """An array of unknown length on disk, written row by row, then read as a memory map.

    The file has no name where the system allows it, so that it goes away with the last array that
    uses it, whatever ends the process. It is written as a stream: a full disk raises an error,
    where writing through a map would kill the process.

    Parameters
    ----------
    shape : tuple of int
        Of one row.
    dtype : dtype
    folder : path
        Where the file is made.

    Raises
    ------
    ProblemError
        If no file can be made there, or the disk is full.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: DTypeLike, folder: str | os.PathLike[str]
    ) -> None:
        self.shape, self.dtype, self.folder = shape, np.dtype(dtype), folder
        self._n_rows = 0
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix="nettrim-")
        except OSError as error:
            raise self._failure(error) from None

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows of the right shape behind those that are there."""
        try:
            self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        except OSError as error:
            self.close()
            raise self._failure(error) from None
        self._n_rows += len(rows)

    def finish(self) -> NDArray[Any]:
        """Return what was written as a read-only array that reads from the file."""
        shape = (self._n_rows, *self.shape)
        try:
            self._file.flush()
            if 0 in shape:
                return np.empty(shape, dtype=self.dtype)
            # Not numpy.memmap: joblib would look for the file by its name.
            contents = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._failure(error) from None
        finally:
            # The map keeps the contents by itself.
            self.close()
        return np.frombuffer(contents, dtype=self.dtype).reshape(shape)

    def close(self) -> None:
        """Close the file; without a map of it the space on disk is free again."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _failure(self, error: OSError) -> ProblemError:
        return ProblemError(
            f"spill must be a folder with room for temporary files, but was {str(self.folder)!r}: "
            f"{error.strerror or error}"
        )


class RowStore:
    """An array of known length that is filled from the top, in memory or spilled.

    Parameters
    ----------
    n_rows : int
    shape : tuple of int
        Of one row.
    dtype : dtype
    folder : path, optional
        Where to spill; memory when omitted.
    """

    def __init__(
        self,
        n_rows: int,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        folder: str | os.PathLike[str] | None,
    ) -> None:
        self._filled = 0
        self._spill = None if folder is None else Spill(shape, dtype, folder)
        self._array: NDArray[Any] = np.empty((0 if self._spill else n_rows, *shape), dtype=dtype)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows behind those that are there."""
        if self._spill is not None:
            self._spill.append(rows)
        else:
            self._array[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def finish(self) -> NDArray[Any]:
        """Return the array, read-only."""
        if self._spill is not None:
            return self._spill.finish()
        self._array.flags.writeable = False
        return self._array

    def close(self) -> None:
        """Give the file back, if there is one; what :meth:`finish` returned stays."""
        if self._spill is not None:
            self._spill.close()

"""Networks from other places: each module reads a :class:`.Network` in and writes it back.

A module imports its framework only when it is called.
"""

from .npz import from_npz, to_npz

__all__ = ["from_npz", "to_npz"]

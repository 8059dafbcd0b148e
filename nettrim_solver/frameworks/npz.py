"""Networks as ``.npz`` files: plain arrays ``W0, b0, W1, b1, ...``, never pickled.

Weights of any framework get in this way. By hand, a file holds

- ``W0, b0, W1, ...``: dense weights of shape (n_inputs, n_outputs), or filters of shape (n_filters,
  n_channels / groups, height, width); intercepts of shape (n_outputs,);
- ``activations``, optional: names of :mod:`nettrim_solver.activations`, one for every layer, or for
  every layer but the last, or one for all of these. ReLU when missing; none after the last layer;
- ``stride0, padding0, dilation0, groups0``, optional: those of a convolution, as :class:`.Conv2d`
  takes them. Images are flattened before the first dense layer;
- ``input_shape``, optional: the shape of one sample.

Other entries, such as data that the file also holds, are left alone. :func:`to_npz` adds one text,
``network``, that describes all operations as JSON, so that every network comes back as it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import as_array
from ..exceptions import ProblemError
from ..network import Activate, Conv2d, Dense, Flatten, Network, Operation
from ..network.graph import check_network
from ..problem_file import load_arrays, save_arrays, unreadable
from ..storage.arrays import FORMAT, OPERATIONS, described_network, network_arrays

__all__ = ["FORMAT", "OPERATIONS", "from_npz", "to_npz"]

WHAT = "a network as arrays W0, b0, W1, ..."

#: Entries of a file that belong to one layer, and take its number.
PER_LAYER = ("W", "b", "stride", "padding", "dilation", "groups")
FOR_ALL = ("activations", "input_shape", "network")


def from_npz(source: str | os.PathLike[str] | Mapping[str, Any]) -> Network:
    """Read a network from an ``.npz`` file, or from arrays by name.

    Parameters
    ----------
    source : path or mapping
        See the module's docstring for the entries. A layer takes the name of its weights, ``"W0"``.

    Raises
    ------
    ProblemFileError
        If the file is missing, damaged, pickled, or its description is no network.
    ProblemError
        If a number is left out, a layer has no intercept, entries are NaN, or shapes do not chain.

    Examples
    --------
    >>> import numpy as np
    >>> arrays = {"W0": np.ones((4, 3)), "b0": np.zeros(3), "W1": np.ones((3, 2)), "b1": np.ones(2)}
    >>> print(from_npz(arrays).summary())
    name    kind   inputs  output  weights  zeros %
    W0      dense  input   3       4 x 3    0.0
    relu_0  relu   W0      3
    W1      dense  relu_0  2       3 x 2    0.0
    total                          18       0.0
    """
    if isinstance(source, Mapping):
        arrays = {str(name): as_array(str(name), value) for name, value in source.items()}
    else:
        arrays = load_arrays(source, WHAT)
    if "network" not in arrays:
        return _plain_network(arrays)
    try:
        return described_network(arrays)
    except ProblemError:
        raise
    except Exception as error:
        # The description that another program wrote may be anything.
        named = "the mapping" if isinstance(source, Mapping) else source
        raise unreadable(named, WHAT, error) from None


def to_npz(network: Network, path: str | os.PathLike[str]) -> None:
    """Write a network to an ``.npz`` file that :func:`from_npz` reads, all or nothing.

    Layer after layer the arrays are ``W0, b0, W1, ...``, without b where there is none. Other
    parameters are ``name.field``.

    Raises
    ------
    ProblemError
        If an operation or activation is not one of this package.
    OSError
        If the folder is missing or not writable; an existing file is then left as it was.
    """
    check_network(network)
    save_arrays(path, network_arrays(network))


# Arrays by hand --------------------------------------------------------------------------------


def _plain_network(arrays: Mapping[str, NDArray[Any]]) -> Network:
    """Return the chain of the arrays W0, b0, W1, ..."""
    n_layers = _count_layers(arrays)
    activations = _activations(arrays.get("activations"), n_layers)
    operations: list[Operation] = []
    images = False
    for i in range(n_layers):
        W, b = arrays[f"W{i}"], arrays[f"b{i}"]
        if W.ndim == 4:
            options = {
                name: _plain_value(arrays[f"{name}{i}"])
                for name in PER_LAYER[2:]
                if f"{name}{i}" in arrays
            }
            operations.append(Conv2d(W, b, name=f"W{i}", **options))
        else:
            if images:
                operations.append(Flatten())
            operations.append(Dense(W, b, name=f"W{i}"))
        images = W.ndim == 4
        if activations[i] != "identity":
            operations.append(Activate(activations[i]))
    shape = arrays.get("input_shape")
    return Network(operations, None if shape is None else _plain_value(np.atleast_1d(shape)))


def _count_layers(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Return the number of layers, or raise if an array of one is missing or has an odd name."""
    numbers: dict[str, set[int]] = {name: set() for name in PER_LAYER}
    known = re.compile(f"({'|'.join(PER_LAYER)})(0|[1-9][0-9]*)")
    like = re.compile(rf"(?i)({'|'.join(PER_LAYER)})[_.]?\d+|activations?|input_?shape")
    for name in arrays:
        match = known.fullmatch(name)
        if match:
            numbers[match[1]].add(int(match[2]))
        elif like.fullmatch(name) and name not in FOR_ALL:
            raise ProblemError(
                f"arrays must be named W0, b0, W1, ... and {', '.join(FOR_ALL[:2])}, but one is "
                f"named {name!r}"
            )
    n_layers = len(numbers["W"])
    if not n_layers:
        raise ProblemError(f"a network must have arrays W0, b0, ..., but has {sorted(arrays)}")
    for i in range(n_layers):
        for name in ("W", "b"):
            if i not in numbers[name]:
                remedy = "; give zeros for a layer without intercept" if name == "b" else ""
                raise ProblemError(
                    f"{name}{i} is missing: layers are numbered from 0 without gaps, each with W "
                    f"and b{remedy}"
                )
    for name in PER_LAYER[1:]:
        if numbers[name] - set(range(n_layers)):
            raise ProblemError(
                f"{name}{max(numbers[name])} belongs to no layer: the last one is W{n_layers - 1}"
            )
    return n_layers


def _activations(given: NDArray[Any] | None, n_layers: int) -> list[str]:
    """Return the name of the activation after each layer."""
    if given is None:
        return ["relu"] * (n_layers - 1) + ["identity"]
    names = [str(name) for name in np.atleast_1d(given).ravel()]
    if given.ndim == 0:
        names *= n_layers - 1
    if given.dtype.kind not in "UO" or len(names) not in (n_layers - 1, n_layers):
        raise ProblemError(
            f"activations must be the names of {n_layers - 1} activations (or of {n_layers}, with "
            f"the last layer's), but was {given!r}"
        )
    return [*names, "identity"][:n_layers]


def _plain_value(array: NDArray[Any]) -> Any:
    """Return the integers, or the word, of a setting."""
    return array.tolist()

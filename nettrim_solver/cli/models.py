"""What subcommands on a model file share: the model and its data."""

from __future__ import annotations

import argparse
import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exceptions import ProblemError
from .common import UsageError, given_options

if TYPE_CHECKING:
    from ..frameworks.files import ModelFile
    from .data import Samples, Score


#: Options that name files of samples.
DATA = ("calibration", "validation")


def add_model(command: Any) -> None:
    """Add the model file, and the trust that some formats need."""
    command.add_argument("model", type=Path, metavar="MODEL", help="model file")
    command.add_argument("--trust", action="store_true",
                         help="read .joblib and .pkl files, running the code in them")  # fmt: skip
    command.add_argument("--onnx-input", metavar="NAME", help="the only input without such values")
    command.add_argument("--onnx-constants", type=Path, metavar="FILE",
                         help="values of inputs that are the same for all samples, .npz with "
                         "their names")  # fmt: skip
    command.add_argument("--onnx-output", metavar="NAME", help="output, of a model with several")
    command.add_argument("--input-shape", type=int, nargs="+", metavar="N", action="append",
                         help="shape of a sample, where an ONNX model leaves it open; of several "
                         "inputs once for each")  # fmt: skip


def onnx_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how an ONNX model is to be read."""
    from ..problem_file import load_arrays

    names = {"onnx_input": "input", "onnx_output": "output", "input_shape": "input_shape"}
    found = {names[name]: value for name, value in given_options(arguments, names).items()}
    if len(found.get("input_shape", ())) == 1:
        (found["input_shape"],) = found["input_shape"]
    if arguments.onnx_constants is not None:
        try:
            found["constants"] = load_arrays(arguments.onnx_constants, "an archive of arrays")
        except ProblemError as error:
            raise ProblemError(f"--onnx-constants: {error}") from None
    return found


def add_model_options(command: Any) -> None:
    """Add the model and its data."""
    add_model(command)
    command.add_argument("--calibration", metavar="FILE", help="samples to prune on, .npy or .npz")
    command.add_argument("--validation", metavar="FILE",
                         help="other samples, and labels: for errors and accuracy")  # fmt: skip
    command.add_argument("--samples", type=int, metavar="N",
                         help="calibrate on N of the samples, chosen at random")  # fmt: skip
    command.add_argument("--scale", type=_factor, metavar="FACTOR",
                         help="multiply all samples by this, such as 1/255")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, metavar="N",
                         help="of everything that is drawn (default: 0)")  # fmt: skip


def _factor(text: str) -> float:
    """Return a number, which may be written as a fraction."""
    try:
        factor = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        factor = math.nan
    if not (math.isfinite(factor) and factor != 0.0):
        raise argparse.ArgumentTypeError(f"must be a number such as 0.5 or 1/255, but was {text!r}")
    return factor


def sources_of(arguments: argparse.Namespace) -> list[Path]:
    """Return the files that the command line reads, which none of its outputs may replace."""
    from .data import path_of

    data = given_options(arguments, DATA).values()
    recipe = Path(arguments.recipe)
    others = (recipe if recipe.suffix == ".toml" else None, arguments.onnx_constants)
    return [arguments.model, *map(path_of, data), *(path for path in others if path is not None)]


def read_file(arguments: argparse.Namespace) -> ModelFile:
    """Return the model of the command line; warn where reading it ran code."""
    from .. import terminal
    from ..frameworks.files import PICKLES, read_model

    model = read_model(arguments.model, trust=arguments.trust, **onnx_options(arguments))
    if model.path.suffix.lower() in PICKLES and not arguments.quiet:
        terminal.warn(f"{model.path} was read as a pickle, which runs any code in it")
    return model


def read_data(
    arguments: argparse.Namespace,
) -> tuple[ModelFile, Samples, Samples | None, Score | None]:
    """Return the model, the calibration and validation samples, and what scores networks."""
    from .data import how_to_make, make_score, read_samples

    model = read_file(arguments)
    if arguments.calibration is None:
        raise UsageError(
            f"calibration data is never made up, give --calibration FILE: {how_to_make(model)}"
        )
    calibration = read_samples(
        arguments.calibration, model, flag="--calibration", scale=arguments.scale,
        n_samples=arguments.samples, seed=arguments.seed,
    )  # fmt: skip
    if arguments.validation is None:
        return model, calibration, None, None
    validation = read_samples(
        arguments.validation, model, flag="--validation", scale=arguments.scale
    )
    return model, calibration, validation, make_score(validation, model, "--validation")

"""The parts of the model card that a reader runs: an example with its outputs, and how inputs are prepared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from kedro_aat.export.described import Preprocessing, Scaling
from kedro_aat.export.sample import is_quantized, run_sample, sample_code

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

_SHOWN = 8  # numbers of each output
# Differences of the outputs from one processor to another, as fractions of the largest.
_TOLERANCE, _QUANTIZED_TOLERANCE = 1e-3, 0.1


def example(model: ModelProto, file_name: str) -> str:
    """Code that runs the file on made-up inputs and compares its outputs, if it runs with such inputs.

    Args:
        model: The file.
        file_name: Its name.
    """
    given, names = list(model.graph.input), [output.name for output in model.graph.output]
    if len(given) == len(names) == 1:
        made = (
            f"inputs = {sample_code(given[0])}\n(outputs,) = session.run(None, {{{json.dumps(given[0].name)}: inputs}})"
        )
    else:
        parts = "".join(f"    {json.dumps(each.name)}: {sample_code(each)},\n" for each in given)
        listed = "[output.name for output in session.get_outputs()]"
        made = f"inputs = {{\n{parts}}}\noutputs = dict(zip({listed}, session.run(None, inputs)))"
    outputs = run_sample(model)
    found = "outputs" if len(given) == len(names) == 1 else None
    compared = "" if outputs is None else tolerance_lines(outputs, is_quantized(model), found)
    words = "The inputs are made up, and so their outputs mean nothing: they show that the file runs as it should."
    unknown = "The inputs are made up; the model may need others, such as another length."
    return f"""{unknown if outputs is None else words}

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file_name}")
{made}{compared}
```"""


def tolerance_lines(outputs: dict[str, NDArray[Any]], is_rounded: bool, found: str | None = None) -> str:
    """Code that compares the first numbers of outputs.

    Args:
        outputs: Name -> what is expected.
        is_rounded: Whether the file computes in 8 bits, so that outputs differ a little between processors.
        found: Python's name of the only output; None if `outputs` is a mapping.
    """
    share = _QUANTIZED_TOLERANCE if is_rounded else _TOLERANCE
    lines = ["", f"# The first numbers of {'the output' if len(outputs) == 1 else 'each output'}, up to rounding."]
    for name, array in outputs.items():
        expression = found or f"outputs[{json.dumps(name)}]"
        first = [float(f"{float(number):.6g}") for number in array.ravel()[:_SHOWN]]
        largest = float(np.abs(array.astype(np.float64)).max()) if array.size else 0.0
        tolerance = float(f"{max(share * largest, 1e-6):.2g}")
        lines.append(f"np.testing.assert_allclose({expression}.ravel()[:{_SHOWN}], {first}, rtol=0, atol={tolerance})")
    return "\n".join(lines)


def preprocessing_words(preprocessing: Preprocessing | None, file_name: str, raw_file: str | None) -> str:
    """How inputs are prepared, in words and as a formula for each input.

    Args:
        preprocessing: What the settings say; None if they say nothing.
        file_name: Name of the delivered file.
        raw_file: Name of the file that takes raw numbers; None if there is none.
    """
    if preprocessing is None:
        return "Not declared (export.preprocessing): prepare inputs as the training data was prepared."
    parts = [] if preprocessing.text is None else [plain(preprocessing.text)]
    parts += [f"- `{name}` = {_formula(scaling)}" for name, scaling in preprocessing.inputs.items()]
    if raw_file is not None:
        parts.append(
            f"`{raw_file}` has these steps in front of the same model and takes the raw numbers as "
            f"{', '.join(f'`raw_{name}`' for name in preprocessing.inputs)}; `{file_name}` takes prepared ones."
        )
    return "\n\n".join(parts) or "None: the model takes raw inputs."


def _formula(scaling: Scaling) -> str:
    raw = f"raw ({scaling.raw_type})"
    scaled = raw if scaling.scale == 1 else f"{raw} * {scaling.scale:.6g}"
    if scaling.mean != 0:
        scaled = f"({scaled} - {_numbers(scaling.mean)})"
    divided = scaled if scaling.std == 1 else f"{scaled} / {_numbers(scaling.std)}"
    is_by_channel = isinstance(scaling.mean, tuple) or isinstance(scaling.std, tuple)
    return divided + (f", where lists have a number for each place along axis {scaling.axis}" if is_by_channel else "")


def _numbers(given: float | tuple[float, ...]) -> str:
    return f"{given:.6g}" if isinstance(given, float) else f"[{', '.join(f'{number:.6g}' for number in given)}]"


def plain(text: str) -> str:
    """Escapes what users write, so that it is not read as HTML or as a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("[", "\\[")

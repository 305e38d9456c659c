"""A training run -> the official layout: `python -m bench.demo_model.export RUN OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.demo_model.config import demo_config, model_config
from bench.demo_model.rounding import to_bf16, to_fp4, to_fp8
from bench.demo_model.weights import Parameters, load_arrays, official
from dsv4_mlx.checkpoint.inventory import Tensor, Weight
from dsv4_mlx.synthetic.write import write_official

Bytes = npt.NDArray[np.uint8]


def trained(run: Path) -> Parameters:
    """The weights of a run's last saved state, in full precision."""
    arrays = load_arrays(run / "state.safetensors")
    return {name[2:]: value for name, value in arrays.items() if name.startswith("p/")}


def export(parameters: Parameters, tokenizer: str, out: Path) -> None:
    """Write the checkpoint to the new or empty folder `out`. Raises as write_official."""
    values = official(model_config(), parameters)

    def encoded(weight: Weight, tensor: Tensor) -> Iterator[Bytes]:
        yield _encoded(weight, tensor, values[weight.name])

    write_official(out, demo_config(), tokenizer, encoded)


def _encoded(weight: Weight, tensor: Tensor, values: npt.NDArray[np.generic]) -> Bytes:
    if tensor.dtypes[0] == "I64":
        return np.ascontiguousarray(values.astype("<i8")).view(np.uint8).reshape(-1)
    floats = np.ascontiguousarray(values.astype(np.float32))
    if weight.form == "raw":
        stored: npt.NDArray[np.generic] = to_bf16(floats) if tensor.dtypes[0] == "BF16" else floats
        return np.ascontiguousarray(stored).view(np.uint8).reshape(-1)
    codes, scales = to_fp8(floats) if weight.form == "fp8" else to_fp4(floats)
    part = scales if tensor.name == weight.scale_name else codes
    return np.ascontiguousarray(part).reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    tokenizer = (options.run / "tokenizer.json").read_text(encoding="utf-8")
    export(trained(options.run), tokenizer, options.out)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

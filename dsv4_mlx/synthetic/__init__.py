"""Small (or true-size) random checkpoints in the official layout, for tests, demos and measurements.

`write_checkpoint(folder, config, seed)` writes what DeepSeek publishes: FP8 and FP4 shards with their
scales, index, config and tokenizer, filled with random weights. `python -m dsv4_mlx.synthetic --help` does
the same from the command line. The weights are noise; the format is not.

With `--holes` (holes.py) a whole release, published or converted, takes 0.3 GB of disk: large weights are 0.

For 0731 the drafter is written as `mtp.0` to `mtp.2`. Its tensor names and shapes are those that several
independent loaders of the release agree on, and their number equals the published count (1568, 1565, 1572).
The dtype of its Markov and confidence heads is less certain; BF16 is written.
"""

from dsv4_mlx.synthetic.configs import cut, release_config, small_config
from dsv4_mlx.synthetic.write import write_checkpoint

__all__ = ["cut", "release_config", "small_config", "write_checkpoint"]

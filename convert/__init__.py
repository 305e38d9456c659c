"""Official FP8/FP4 checkpoint -> the MLX layout that `manifest.py` describes. Start reading in run.py."""

"""Ops in pure MLX: right on every device, and the CPU path. One op per file, written for truth first.

Shapes: B batch, T rows of this chunk, S window rows, N compressed rows, H heads, K head width, R rotated
channels, D model width, C hyper-connection streams, E experts, A experts per token, V vocabulary.
"""

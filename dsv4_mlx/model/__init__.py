"""The architecture: what DeepSeek V4 computes, from token ids and a state to logits. No files, no paths.

Shapes in comments: B batch, T rows of this chunk, S window rows, N compressed rows, H heads, K head width,
R rotated channels, D model width, C hyper-connection streams, E experts, A experts per token, V vocabulary.
"""

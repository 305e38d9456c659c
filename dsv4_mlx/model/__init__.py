"""The architecture: what DeepSeek V4 computes, from token ids and a state to logits. No files, no paths.

Shapes: B batch, T tokens of this chunk, R rows of all sequences (B T), S window rows or those of a ring,
N compressed rows, J of them that an index chose, P tokens of a group, G groups (of tokens, of heads; G' those
that emit a row), H heads, K channels of a head or row, Q rank of the queries' latent, L rank of a group of
heads' output, D model width, C hyper-connection streams, M products that mix them, (2 + C) C, W columns of a
ring row or a rope table, E experts, A experts per token, I width inside an expert, V vocabulary.
"""

"""Files -> arrays: a converted folder as a source of tensors, and a model opened from it."""

"""Files -> arrays: a converted or an official folder as a source of tensors, and a model opened from it."""

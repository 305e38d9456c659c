"""The front door: an Engine holds one model, a Session one token sequence; `generate` is the main path."""

"""One file a protocol: a body in, events out."""

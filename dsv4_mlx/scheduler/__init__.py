"""Between a protocol and the model: one thread that owns MLX, its queue, its live sessions, exact turns."""

"""Other people's programs on our models. Nothing here is imported unless asked for by name."""

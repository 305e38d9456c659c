"""The command line: options in, Engine and convert called, people's output out. No logic of its own."""

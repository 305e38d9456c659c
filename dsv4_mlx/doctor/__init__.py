"""What this machine is and can do with the model: facts, measurements, verdicts, advice."""

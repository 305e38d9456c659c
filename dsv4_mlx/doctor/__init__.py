"""What this machine is and can do with the model: facts, measurements, verdicts, advice."""

from dsv4_mlx.doctor.examine import Examination, examine

__all__ = ["Examination", "examine"]

"""What a model needs before it is there: disk at every moment, memory, how it would run, at what speed.

    candidates(config)  every way to store the model, byte for byte     candidates.py
    plan(...)           one option per way, and the commands            plan.py
    predict(...)        bounds on speed, from bytes and a simulator     predict.py

How a model fits is `doctor.fit`, which `doctor` uses too. Pure arithmetic: no file, no network.
"""

from dsv4_mlx.planning.candidates import Candidate, candidates
from dsv4_mlx.planning.plan import Option, Plan, plan
from dsv4_mlx.planning.predict import Speeds

__all__ = ["Candidate", "Option", "Plan", "Speeds", "candidates", "plan"]

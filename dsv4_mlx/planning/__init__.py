"""What a model needs before it is there: disk at every moment, memory, how it would run, at what speed.

    candidates(config)  every way to store the model, byte for byte     candidates.py
    plan(...)           one option per way, and the commands            plan.py
    predict(...)        bounds on speed, from bytes and a simulator     predict.py
    pace_here(...)      how fast this machine converts, by trying       rehearsal.py

How a model fits is `doctor.fit`, which `doctor` uses too. But for `pace_here` it is pure arithmetic.
"""

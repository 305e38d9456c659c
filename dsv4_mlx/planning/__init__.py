"""What a model needs before it is there: disk at every moment, memory, how it would run, at what speed.

    candidates_for(folder)  every way to store the model, byte for byte     candidates.py
    fit(...)                how one of them runs in so much memory          fit.py
    predict(...)            tokens per second, and a bound of them          speed.py
    plan(...)               one option per way, and the commands            plan.py
    throughput_here(...)    how fast this machine converts, by trying       rehearsal.py
    examine(...)            this machine, and what runs on it how           doctor.py

But for `throughput_here`, `measured_speeds` and `examine` it is arithmetic.
"""

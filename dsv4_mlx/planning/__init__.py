"""What a model needs before it is there: disk at every moment, memory, how it would run, at what speed.

    candidates.py   every way to store the model, byte for byte
    fit.py          which of them runs how, in so much memory
    plan.py         one option per way, and the commands
    speed.py        bounds on decode speed, from bytes
    macs.py         what a machine allows, and what the model costs on it
    timeline.py     a paged step as a sequence of waits
    rehearsal.py    how fast this machine converts, by trying
    doctor.py       what `dsv4-mlx doctor` says

But for doctor.py and rehearsal.py it is arithmetic.
"""

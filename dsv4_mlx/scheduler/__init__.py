"""Between a protocol, or the chat, and the model: one thread that owns MLX, its queue, its live sessions.

engine_thread.py    the thread, and what others may call: submit, cancel, call, probe, stats, close
request.py          GenerationRequest in, events out
scheduler.py        several requests at a time: whose step is next
admission.py        who waits, and in which order they are let in
backend.py          what the thread drives: a model with sessions
replay.py           a script in place of a model
session_pool.py     the live sessions             session_policy.py   which of them goes on, and which go
turn_cache.py       exact turns: what was sampled stands in the next prompt as it was
"""

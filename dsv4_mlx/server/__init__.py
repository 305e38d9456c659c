"""HTTP in front of the engine thread: four protocols, one model, loopback by default.

    body.py, fields.py      bytes -> a checked JSON object; its values -> typed ones, or a Refusal
    chat.py, messages.py, responses.py, completions.py      a body -> Ask: what one protocol wants
    turn.py                 Ask -> prompt ids and a Job
    parse.py, wire.py       sampled tokens -> the protocol's events, and its whole answer
    guard.py                who may ask at all: Host, Origin, key, content type, sizes
    gate.py, app.py         Starlette: what stands around every route, and the routes
    deliver.py, feed.py     a turn over HTTP: streams, keep-alives, disconnects
    crowd.py                connections at once: who is served, who is refused, what is accepted at all
    run.py                  uvicorn, signals, shutdown

Only the last four lines know of Starlette and uvicorn. Nothing here touches MLX: dsv4_mlx.scheduler does.
"""

"""HTTP in front of the engine thread: four protocols, one model, loopback by default.

    protocols/              what each protocol takes and gives
    translate.py            bytes -> a checked request -> the job for the engine thread
    streaming.py            a turn over HTTP: streams, keep-alives, disconnects
    middleware.py           who may ask at all: Host, Origin, key, content type, sizes; what surrounds a route
    app.py, openapi.py      the routes; their description for clients
    api_errors.py           what is said when it can't be done, in each protocol's shape
    metrics.py              what is counted and logged
    crowd.py                connections at once: who is served, who is refused, what is accepted at all
    lifecycle.py            uvicorn, signals, shutdown
    options.py, service.py  what a server is told at its start; what it relies on of the engine thread

Nothing here touches MLX: dsv4_mlx.scheduler does.
"""

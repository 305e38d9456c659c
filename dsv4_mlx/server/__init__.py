"""HTTP in front of the engine thread: four protocols, one model, loopback by default.

    protocols/          one file a protocol: a body -> ParsedRequest, and its StreamEncoder: tokens -> events
    translate.py        bytes of a request -> ParsedRequest -> prompt ids and a GenerationRequest
    options.py          what the server was told: addresses, keys, limits
    api_errors.py       what went wrong -> a status and a body in the words of its protocol
    openapi.py          the description of all this, and what is said of the model

    middleware.py       what stands around every route: who may ask at all, sizes, headers, errors
    app.py              the routes
    streaming.py        one exchange over HTTP: events of the engine thread -> a stream or one answer
    metrics.py          what is counted, and its page; a line of log per request
    crowd.py            connections at once: who is served, who is refused, what is accepted at all
    lifecycle.py        uvicorn, signals, shutdown

Only the second group knows of Starlette and uvicorn. Nothing here touches MLX: dsv4_mlx.scheduler does.
"""

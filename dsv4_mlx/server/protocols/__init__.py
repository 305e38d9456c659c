"""One file a protocol: a body in, events out.

chat.py, completions.py, messages.py, responses.py      the four protocols
ollama.py           Ollama's two, read as Chat or text Completions
library.py          calls in Python, read as Chat Completions
fields.py           bytes -> a checked JSON object; its values -> typed ones, or an ApiError
content.py          documents, files, hosted calls; what has no effect: by specification.json
options.py          sampling and thinking, in any protocol's words
tools.py            tools and the choice among them
request.py          ParsedRequest: what a request wants, whichever protocol it came in
stream.py           StreamEncoder: what all have in common on the way out
"""

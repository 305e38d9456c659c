"""One file a protocol: a body in, events out.

chat.py, completions.py, messages.py, responses.py      the four protocols
library.py          calls in Python, read as Chat Completions
fields.py           bytes -> a checked JSON object; its values -> typed ones, or an ApiError
options.py          sampling and thinking, in any protocol's words
tools.py            tools and the choice among them
request.py          ParsedRequest: what a request wants, whichever protocol it came in
stream.py           StreamEncoder: what the four have in common on the way out
"""

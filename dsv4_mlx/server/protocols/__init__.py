"""One file a protocol: a body in, events out.

chat.py, messages.py, responses.py, completions.py      what one protocol wants of a body
fields.py, options.py, tools.py      a body's values, checked: by type; for sampling and thinking; tools
request.py              what a request wants, whichever protocol it came in
parser.py, stream.py    sampled tokens -> the library's events -> the protocol's, and its whole answer
"""

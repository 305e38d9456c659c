"""A conversation of two questions, each answer shown while it is made.

python examples/stream.py [MODEL]
"""

import sys

import dsv4_mlx

QUESTIONS = ("What is the sliding window?", "What is CSA?")

with dsv4_mlx.load(sys.argv[1] if len(sys.argv) > 1 else "demo") as model:
    messages = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        print(f"> {question}")
        for event in model.stream(messages, think="off", max_tokens=200):
            if isinstance(event, dsv4_mlx.PrefillProgress):
                print(f"[prompt {event.done}/{event.total}, {event.cached} known]", file=sys.stderr)
            elif isinstance(event, dsv4_mlx.Piece):
                print(event.text, end="", flush=True)
            else:
                print()
                messages.append({"role": "assistant", "content": event.text})

"""A loop of one's own: the likeliest token again and again, then another branch from the same point.

python examples/session.py [MODEL]
"""

import sys

import dsv4_mlx

with dsv4_mlx.load(sys.argv[1] if len(sys.argv) > 1 else "demo") as model, model.session() as session:
    prompt = model.tokenize("Each token sees the last")
    logits = session.sync(prompt)
    second = int(logits.argsort()[-2])
    with session.fork() as other:
        for _ in range(8):
            logits = session.advance(int(logits.argmax()))
        print(model.detokenize(session.tokens))

        logits = other.advance(second)
        for _ in range(7):
            logits = other.advance(int(logits.argmax()))
        print(model.detokenize(other.tokens))

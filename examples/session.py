"""A loop of one's own: the log-likelihood of three endings. What they share is computed once.

python examples/session.py [MODEL]
"""

import sys

import numpy as np

import dsv4_mlx

BEGINNING = "The official weights are FP8, with experts in"
ENDINGS = (" FP4.", " FP8.", " four bits.")

with dsv4_mlx.load(sys.argv[1] if len(sys.argv) > 1 else "demo") as model, model.session() as session:
    session.sync(model.tokenize(BEGINNING))
    print(BEGINNING)
    for ending in ENDINGS:
        with session.fork() as branch:
            logits, score = branch.logits, 0.0
            for token in model.tokenize(ending):
                score += float(logits[token] - np.logaddexp.reduce(logits))
                logits = branch.advance(token)
        print(f"{score:8.2f} {ending}")

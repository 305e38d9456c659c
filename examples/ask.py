"""One question, one answer.

python examples/ask.py [MODEL]
"""

import sys

import dsv4_mlx

with dsv4_mlx.load(sys.argv[1] if len(sys.argv) > 1 else "demo") as model:
    print(model)
    answer = model.ask("What is CSA?", max_tokens=200, sampling=dsv4_mlx.SamplingOptions(temperature=0))
    print("thought: ", answer.thinking)
    print("answered:", answer)
    print(f"{answer.tokens} tokens, ended by {answer.reason}")

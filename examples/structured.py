"""An answer that is JSON of a schema. A pydantic model may stand in place of the dict.

python examples/structured.py [MODEL]
"""

import json
import sys

import dsv4_mlx

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "rating": {"enum": [1, 2, 3, 4, 5]},
    },
    "required": ["name", "rating"],
    "additionalProperties": False,
}

with dsv4_mlx.load(sys.argv[1] if len(sys.argv) > 1 else "demo") as model:
    answer = model.ask("Rate the sliding window.", think="off", schema=SCHEMA, max_tokens=200)
    print(json.loads(answer.text))

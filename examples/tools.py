"""The model calls a function of this program, and answers with what it returned.

python examples/tools.py [MODEL]
"""

import json
import sys

import dsv4_mlx

ROOMS = {"Faldor": 214, "Kelvin": 381}


def find_room(person: str) -> str:
    return f"room {ROOMS[person]}" if person in ROOMS else f"nobody knows {person}"


TOOL = {
    "type": "function",
    "function": {
        "name": "find_room",
        "description": "The room of a person.",
        "parameters": {
            "type": "object",
            "properties": {"person": {"type": "string"}},
            "required": ["person"],
        },
    },
}
GREEDY = dsv4_mlx.SamplingOptions(temperature=0)

with dsv4_mlx.load(sys.argv[1] if len(sys.argv) > 1 else "demo") as model:
    messages = [{"role": "user", "content": "In which room is Faldor?"}]
    asked = model.ask(messages, think="off", tools=[TOOL], max_tokens=200, sampling=GREEDY)
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in asked.tool_calls
    ]
    messages.append({"role": "assistant", "content": asked.text, "tool_calls": calls})
    for call in asked.tool_calls:
        arguments = json.loads(call.arguments)
        result = find_room(**arguments)
        print(f"{call.name}({arguments}) -> {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print(model.ask(messages, think="off", tools=[TOOL], max_tokens=200, sampling=GREEDY))

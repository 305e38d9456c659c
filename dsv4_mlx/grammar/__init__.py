"""Grammars for what the model may say: JSON, a JSON Schema, a regular expression, tool calls.

    Json | Regex | ToolCalls   what the answer must be                        rules.py
      --schema.py, tools.py-->   checked, limited, as a grammar's text
      --Grammars.constraint-->   engine.constraint.Constraint                 grammars.py
    tokenizer.json --vocabulary.py--> the tokens' bytes, as the grammars see them

llguidance keeps the state of a grammar and says which tokens may follow. What it would not enforce is
refused here; nothing is enforced in part.
"""

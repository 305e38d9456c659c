"""Grammars for what the model may say: JSON, a JSON Schema, a regular expression, tool calls.

    Json | Regex | ToolCalls      what the answer must be                      rules.py
      -> checked, limited, as a grammar's text                                 schema.py, tools.py
      -> engine.constraint.Constraint                                          grammars.py
      -> a grammar, the tokens' bytes, and where an answer stands              matcher.py

llguidance keeps the state of a grammar and says which tokens may follow. What it would not enforce is
refused here; nothing is enforced in part.
"""

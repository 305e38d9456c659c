"""Messages -> token ids, and sampled ids -> what the model said. The vendor's protocol library does both.

template.py         conversations -> the exact prompt
output_parser.py    sampled ids -> thinking, answer, tool calls; the one parser of all commands
markers.py          which ids are markers, and a spelling of them that no text contains
"""

"""Messages -> token ids, and sampled ids -> what the model said. The vendor's protocol library does both.

template.py         conversations -> the exact prompt; a spelling of markers that no text contains
output_parser.py    sampled ids -> thinking, answer, tool calls; the one parser of all commands
"""

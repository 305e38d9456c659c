"""The terminal chat. It talks to a `Speaker`, knows nothing of the model, and imports no mlx.

speaker.py       what the chat asks of an engine        worker.py   the thread that owns the engine
    conversation.py  what was said                          store.py    conversations as files
    chat.py          what a line of input does              commands.py the words that start with /
    screen.py        a terminal, drawn                      plain.py    a terminal or a pipe, as lines
"""

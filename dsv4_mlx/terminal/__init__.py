"""The terminal chat. It asks a chat engine, knows nothing of the model, and imports no mlx.

terminal.py         the view that suits; the chat put together
chat.py             what a line of input does           commands.py     the words that start with /
chat_engine.py      what the chat asks of an engine     chat_thread.py  the thread that owns the engine
answering.py        the answer under way                attach.py       files and pipes in a question
conversation.py     what was said                       store.py        conversations as files
view.py             what shows the chat:
screen.py           a terminal, drawn                   plain.py        a terminal or a pipe, as lines
input.py            what the keys do                    history.py      the lines typed before
status.py           the one-line displays               scrollback.py   what has been shown
markdown.py         growing text -> finished lines      paint.py        lines -> styled segments, bytes
"""

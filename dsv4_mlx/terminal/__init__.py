"""The terminal chat. It talks to a ChatEngine, knows nothing of the model, and imports no mlx.

chat_engine.py   what the chat asks of an engine, and the events it hears
chat.py          what a line of input does              commands.py     the words that start with /
conversation.py  what was said                          store.py        conversations as files
attach.py        files in a question; the clipboard     history.py      lines typed before
answering.py     the answer under way and its figures   view.py         what shows it must do:
screen.py        a terminal, drawn                      plain.py        a terminal or a pipe, as lines
input.py         keys and the line being typed          status.py       the one-line displays
markdown.py      Markdown as it comes                   scrollback.py   what has been said, as entries
paint.py         text with colours -> lines             terminal.py     which view; all of it put together
"""

"""The words that start with /."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from dsv4_mlx.errors import Dsv4Error
from dsv4_mlx.terminal import attach as clipboard
from dsv4_mlx.terminal.answering import stats
from dsv4_mlx.terminal.attach import Attachment, read_text
from dsv4_mlx.terminal.chat import Chat
from dsv4_mlx.terminal.chat_engine import Think
from dsv4_mlx.terminal.conversation import Conversation

ALIASES = {
    "": "help", "?": "help", "h": "help", "exit": "quit", "bye": "quit", "q": "quit", "new": "clear",
    "reset": "clear", "no_think": "nothink", "history": "list", "resume": "load", "context": "tokens",
}  # fmt: skip
OTHERS = {  # commands of other chats
    "set": "options are given when a chat starts: dsv4-mlx chat --help",
    "temperature": "options are given when a chat starts: dsv4-mlx chat --help",
    "show": "/model names the model, /tokens says how much of the context is used",
    "image": "the model reads text; /read FILE puts a text file before the next question",
}
LEAVING = ("exit", "quit", "bye")  # a line of this word alone
ANSWER_ROOM = 1024  # tokens left for a question and its answer when the end of a file is taken


@dataclass(frozen=True)
class Command:
    """One command: `argument` as help shows it, empty where there is none."""

    name: str
    argument: str
    help: str
    run: Callable[[Chat, str], None]


def is_command(text: str) -> bool:
    """Whether a line is meant as a command: /word, or a word that leaves. A path is not."""
    if text.strip().lower() in LEAVING:
        return True
    return re.fullmatch(r"/\??[A-Za-z]*(\s.*)?", text.strip(), re.DOTALL) is not None and text[0] == "/"


def run_command(chat: Chat, text: str) -> None:
    """Run a command line; what goes wrong is said."""
    word, _, argument = text.partition(" ")
    name = word.removeprefix("/").lower()
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None and name in OTHERS:
        chat.view.problem(f"there is no command {word}\n  next: {OTHERS[name]}")
        return
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
        chat.view.problem(f"there is no command {word}; the nearest is /{near[0]}\n  next: /help shows them")
        return
    if argument.strip() and not command.argument:
        chat.view.problem(f"/{command.name} takes nothing after it, found {argument.strip()[:40]!r}")
        return
    try:
        command.run(chat, argument.strip())
    except Dsv4Error as error:
        chat.view.problem(str(error))
    chat.tell_problems()


def _help(chat: Chat, argument: str) -> None:
    rows = [(f"/{c.name} {c.argument}".rstrip(), c.help) for c in COMMANDS.values()]
    width = max(len(left) for left, _ in rows)
    lines = [f"{left.ljust(width)}  {right}" for left, right in rows]
    lines += ["", "Ctrl-C stops an answer, Ctrl-D quits, Ctrl-T shows the last thinking,"]
    lines += ["Alt-Enter or a \\ at the end of the line starts a new line,"]
    lines += ["Ctrl-X Ctrl-E opens the line in $EDITOR. A space before / sends the line as it is."]
    chat.view.note("\n".join(lines))


MODES: dict[str, Think] = {"off": "off", "on": "on", "max": "max"}


def _mode(think: Think) -> Callable[[Chat, str], None]:
    def run(chat: Chat, argument: str) -> None:
        mode = MODES.get(argument.lower() or think)
        if mode is None:
            chat.view.problem(f"/think takes off, on or max, found {argument[:40]!r}")
            return
        chat.conversation.think = mode
        words = {"off": "answers without thinking", "on": "thinks first", "max": "thinks a lot first"}
        chat.view.note(f"from now on it {words[mode]}")

    return run


def _model(chat: Chat, argument: str) -> None:
    if chat.info is not None:
        chat.view.note(f"{chat.info.greeting}\n  another one: leave, and dsv4-mlx chat MODEL")


def _system(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    if not argument:
        chat.view.note(f"system: {conversation.system}" if conversation.system else "there is no system text")
        return
    conversation.system = "" if argument == "-" else argument
    chat.save()
    chat.view.note("the system text is removed" if argument == "-" else "the system text is set")


def _read(chat: Chat, argument: str) -> None:
    if not argument:
        chat.view.problem("/read needs a file\n  next: /read FILE")
        return
    limit = chat.info.context if chat.info else 0
    attachment = read_text(argument.strip("\"'") if argument[:1] in "\"'" else argument)
    before = chat.count()
    chat.attachments.append(attachment)
    tokens = chat.count() - before
    over = before + tokens - limit + 1
    if over <= 0:
        lines = attachment.text.count("\n") + (not attachment.text.endswith("\n"))
        chat.view.note(
            f"{attachment.name}: {lines:,} lines, {tokens:,} tokens; it goes with the next question"
        )
        return
    chat.attachments.pop()
    room = limit - before - min(ANSWER_ROOM, limit // 4)
    said = (
        f"{attachment.name} has {tokens:,} tokens, {over:,} more than the context of {limit:,} has room for"
    )
    if room < 16:
        chat.view.problem(f"{said}\n  next: /clear starts anew, or restart with a larger --context")
        return
    chat.view.problem(f"{said}\n  next: y takes its last {room:,} tokens or so; anything else leaves it")
    chat.offer = lambda: _take_tail(chat, attachment, tokens, room)


def _take_tail(chat: Chat, attachment: Attachment, tokens: int, room: int) -> None:
    text, before = attachment.text, chat.count()
    keep = max(1, int(len(text) * room / tokens))
    while keep:
        tail = text[-keep:]
        newline = tail.find("\n")
        if 0 <= newline < len(tail) // 2:
            tail = tail[newline + 1 :]  # from the beginning of a line, unless lines are very long
        chat.attachments.append(Attachment(f"{attachment.name} (the end of it)", tail))
        found = chat.count() - before
        if found <= room:
            chat.view.note(f"the last {len(tail):,} characters, {found:,} tokens, go with the next question")
            return
        chat.attachments.pop()
        keep = min(keep - 1, int(keep * room / found))
    chat.view.problem(f"no part of {attachment.name} fits")


def _save(chat: Chat, argument: str) -> None:
    if not chat.conversation.messages:
        chat.view.problem("there is nothing to save yet")
        return
    if argument:
        chat.conversation.title = argument
    chat.store.save(chat.conversation)
    where = chat.store.path(chat.conversation.key)
    chat.view.note(f"saved as {chat.conversation.name!r}\n  in   {where}")


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        chat.view.problem("/load needs a conversation\n  next: /list shows them; /load NUMBER or NAME")
        return
    chat.change_to(chat.store.load(chat.store.find(argument)))
    chat.take_up()
    chat.used = chat.count()
    chat.view.replay(chat.conversation)


def _list(chat: Chat, argument: str) -> None:
    entries = chat.store.entries()
    if not entries:
        chat.view.note("no conversation is stored yet")
    lines = []
    for number, entry in enumerate(entries[:30], start=1):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.updated))
        mark = "  (this one)" if entry.key == chat.conversation.key else ""
        model = f"  [{entry.model}]" if entry.model else ""
        lines.append(f"{number:>3}  {when}  {entry.messages:>4} messages  {entry.name}{model}{mark}")
    if len(entries) > 30:
        lines.append(f"and {len(entries) - 30} older ones, in {chat.store.folder}")
    if lines:
        chat.view.note("\n".join(lines))


def _retry(chat: Chat, argument: str) -> None:
    text = chat.taken_back if chat.taken_back is not None else chat.conversation.take_back()
    if text is None:
        chat.view.problem("there is no question to ask again")
    else:
        chat.view.put_back("")
        chat.retry(text)


def _undo(chat: Chat, argument: str) -> None:
    text = chat.conversation.take_back()
    if text is None:
        chat.view.problem("there is nothing to take back")
        return
    chat.used = chat.count()
    chat.save()
    chat.view.note(f"taken back: {text[:60].splitlines()[0] if text.strip() else ''}")


def _edit(chat: Chat, argument: str) -> None:
    text = chat.conversation.take_back()
    if text is None:
        chat.view.problem("there is no question to edit")
        return
    chat.used = chat.count()
    chat.view.note("the last question is back in the input; its answer is taken back")
    chat.view.put_back(text)


def _tokens(chat: Chat, argument: str) -> None:
    limit = chat.info.context if chat.info else 0
    used = chat.used = chat.count()
    lines = [f"{used:,} of {limit:,} tokens are used, {max(0, limit - used):,} are free"]
    for attachment in chat.attachments:
        lines.append(f"of them for the next question: {attachment.name}, {len(attachment.text):,} characters")
    chat.view.note("\n".join(lines))


def _stats(chat: Chat, argument: str) -> None:
    if chat.finished is None:
        chat.view.note("no answer yet")
    else:
        chat.view.note(stats(chat.finished))


def _copy(chat: Chat, argument: str) -> None:
    answer = chat.conversation.last("assistant")
    if answer is None or not answer.text:
        chat.view.problem("there is no answer to copy")
    else:
        chat.view.note(clipboard.copy(answer.text, chat.view.escape))


def _clear(chat: Chat, argument: str) -> None:
    old = chat.conversation
    fresh = Conversation.new(old.system, old.think)
    fresh.model = old.model
    chat.change_to(fresh)
    chat.view.wipe()
    kept = f"; the last one is stored as {old.name!r}" if old.messages else ""
    chat.view.note(f"a new conversation{kept}")


def _quit(chat: Chat, argument: str) -> None:
    chat.quit()


COMMANDS = {
    command.name: command
    for command in (
        Command("help", "", "show this", _help),
        Command("think", "[off|on|max]", "think before answering", _mode("on")),
        Command("nothink", "", "answer at once", _mode("off")),
        Command("max", "", "think a lot before answering", _mode("max")),
        Command("system", "[TEXT]", "show the system text, or set it; - removes it", _system),
        Command("read", "FILE", "put a text file before the next question", _read),
        Command("save", "[NAME]", "store now, under a name (every turn is stored anyway)", _save),
        Command("load", "NAME", "go on with a stored conversation, by number or name", _load),
        Command("list", "", "list the stored conversations", _list),
        Command("retry", "", "ask the last question again", _retry),
        Command("undo", "", "take the last question and answer back", _undo),
        Command("edit", "", "put the last question back into the input", _edit),
        Command("model", "", "name the model", _model),
        Command("tokens", "", "how much of the context is used", _tokens),
        Command("stats", "", "time, speed and memory of the last answer", _stats),
        Command("copy", "", "copy the last answer", _copy),
        Command("clear", "", "start a new conversation", _clear),
        Command("quit", "", "leave", _quit),
    )
}
IMMEDIATE = ("help", "quit")  # run even while the model is busy


class SlashCommands:
    """COMMANDS, as a Chat takes them."""

    known = staticmethod(is_command)
    run = staticmethod(run_command)

    @staticmethod
    def immediate(text: str) -> bool:
        word = text.strip().lower()
        name = word.removeprefix("/")
        return is_command(word) and ALIASES.get(name, name) in IMMEDIATE

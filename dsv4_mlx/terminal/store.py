"""Conversations as files: one JSON file each, private, replaced whole.

A file that can't be read is renamed to `NAME.damaged` and said once; one of a newer version is left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dsv4_mlx.errors import Dsv4Error, InputError, MachineError
from dsv4_mlx.terminal.conversation import VERSION, Conversation


def private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter. Raises MachineError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.stat().st_uid == os.getuid():
            path.chmod(0o700)
    except OSError as error:
        raise MachineError(f"the folder can't be made: {error.strerror}", where=path) from None


def write_private(path: Path, data: bytes) -> None:
    """Replace a file whole: a reader, and a crash, see the old bytes or the new. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The rename itself is durable once the folder is.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def keep_aside(path: Path) -> Path:
    """Rename a damaged file so that it is neither read again nor lost."""
    aside = path.with_name(path.name + ".damaged")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    with contextlib.suppress(OSError):
        path.rename(aside)
    return aside


class DamagedError(InputError):
    """A file was damaged and has been kept aside."""


class NewerError(InputError):
    """A file was written by a newer version of this program."""


@dataclass(frozen=True)
class ListedConversation:
    """A stored conversation, as a list shows it."""

    key: str
    name: str
    updated: float
    messages: int
    model: str = ""  # the last part of its path


class ConversationStore:
    """The folder `chats`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []  # found on the way, to be said once
        self._written: dict[str, tuple[int, int]] = {}  # key -> what the file looked like
        self._said: set[str] = set()

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def save(self, conversation: Conversation) -> None:
        """Write a conversation. Raises MachineError.

        Where another program has changed the file meanwhile, this one goes on under a key of its own.
        """
        private_folder(self.folder)
        path = self.path(conversation.key)
        seen = self._written.get(conversation.key)
        if seen is not None and path.exists() and seen != _looks(path):
            conversation.key = f"{conversation.key}-{os.getpid()}"
            path = self.path(conversation.key)
            self.problems.append(f"the conversation was changed elsewhere: this one is now {path.name}")
        data = json.dumps(conversation.to_json(), ensure_ascii=False, indent=1)
        try:
            write_private(path, data.encode("utf-8", "backslashreplace"))
            self._written[conversation.key] = _looks(path)
        except OSError as error:
            raise MachineError(
                f"the conversation can't be saved: {error.strerror}",
                where=path,
                next="free some space or make the folder writable; the chat goes on without saving",
            ) from None

    def load(self, key: str) -> Conversation:
        """Read a conversation. Raises InputError; a damaged file has then been kept aside."""
        path = self.path(key)
        try:
            raw = json.loads(path.read_bytes().decode("utf-8"))
            if not isinstance(raw, dict) or not isinstance(raw.get("version"), int):
                raise ValueError("it has no version number")
            if raw["version"] > VERSION:
                raise NewerError(
                    f"the conversation has version {raw['version']}, this program reads up to {VERSION}",
                    where=path,
                    next="use the version that wrote it; the file is left as it is",
                )
            conversation = Conversation.from_json(raw)
        except FileNotFoundError:
            raise InputError(f"there is no conversation {key!r}", next="/list shows them") from None
        except OSError as error:
            raise InputError(f"the conversation can't be read: {error.strerror}", where=path) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            aside = keep_aside(path)
            why = str(error) or type(error).__name__
            raise DamagedError(f"the conversation is damaged ({why}); it is kept as", where=aside) from None
        conversation.key = key
        self._written[key] = _looks(path)
        return conversation

    def entries(self) -> list[ListedConversation]:
        """Every readable conversation, latest first. What can't be read is added to `problems`."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*.json"):
                try:
                    known = path.stem in self._written
                    seen = self._written.get(path.stem)
                    conversation = self.load(path.stem)
                    if known and seen is not None:  # looking is not taking over
                        self._written[path.stem] = seen
                    else:
                        del self._written[path.stem]
                except Dsv4Error as error:
                    if str(error) not in self._said:
                        self.problems.append(str(error))
                    self._said.add(str(error))
                    continue
                found.append(
                    ListedConversation(
                        path.stem,
                        conversation.name,
                        conversation.updated,
                        len(conversation.messages),
                        Path(conversation.model).name,
                    )
                )
        return sorted(found, key=lambda entry: -entry.updated)

    def find(self, wanted: str) -> str:
        """A number of the list, a title or the beginning of a key -> a key. Raises InputError."""
        entries = self.entries()
        if wanted == "last" and entries:
            return entries[0].key
        if wanted.isdigit() and 1 <= int(wanted) <= len(entries):
            return entries[int(wanted) - 1].key
        matching = [entry.key for entry in entries if wanted in (entry.key, entry.name)]
        begin = wanted.lower()
        matching += [e.key for e in entries if e.key.startswith(wanted) or e.name.lower().startswith(begin)]
        if matching:
            return matching[0]
        raise InputError(
            f"there is no conversation {wanted!r}, of {len(entries)} stored", next="/list shows them"
        )

    def take_problems(self) -> list[str]:
        """What has gone wrong since the last call."""
        problems, self.problems = self.problems, []
        return problems


def _looks(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)

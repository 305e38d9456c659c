"""Trying again: what passes by itself is waited for, what does not is said at once."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dsv4_mlx.errors import DiskFull, Dsv4Error, InputError, MachineError

T = TypeVar("T")

# The library's HTTP client has changed its name before; its errors' base is found where the library has it.
_HTTP: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
_TOKEN = "log in with `hf auth login`, and accept the model's terms on its page"


@dataclass(frozen=True)
class Patience:
    """`tries` failures in a row without a byte of progress end it; pauses double, `first` to `longest`.

    `tell` gets a line for the user before each pause.
    """

    tries: int = 8
    first: float = 1.0  # seconds
    longest: float = 60.0
    tell: Callable[[str], None] = lambda line: None

    def over(self, what: str, work: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """The result of `work`. `progress` counts what has come so far.

        Raises InputError for what the Hub refuses, MachineError for a full disk or a Hub that stays away.
        """
        failures, reached = 0, progress()
        while True:
            try:
                return work()
            except Dsv4Error:
                raise
            except (OSError, _HTTP) as error:
                final = refusal(what, error)
                if final is not None:
                    raise final from None
                now = progress()
                failures = 1 if now > reached else failures + 1
                reached = max(reached, now)
                if failures >= self.tries:
                    raise MachineError(
                        f"{what} can't be fetched: {_words(error)}",
                        next="check the network; the same command continues where it stopped",
                    ) from None
                pause = max(self._pause(failures), _asked(error))
                self.tell(f"{what}: {_words(error)}; trying again in {pause:.0f} s")
                time.sleep(pause)

    def _pause(self, failures: int) -> float:
        return float(min(self.longest, self.first * 2 ** (failures - 1)))


def refusal(what: str, error: Exception) -> Dsv4Error | None:
    """The error for what trying again does not change; None for the rest."""
    match error:
        case GatedRepoError():
            return InputError(f"{what}: the Hub asks who you are", next=_TOKEN)
        case EntryNotFoundError():
            return InputError(f"{what} is not on the Hub", next="use a complete checkpoint's repository")
        case RepositoryNotFoundError() | RevisionNotFoundError() | HFValidationError():
            return InputError(f"{what}: the Hub has no such model or revision", next="check its name")
        case OfflineModeIsEnabled():
            return InputError(
                f"{what}: HF_HUB_OFFLINE is set, so nothing is asked of the Hub",
                next="unset it; or give the folder of a checkpoint that is complete",
            )
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull("the disk is full", next="free some space; the same command continues")
        case OSError() if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return InputError(f"{what} can't be written: {error.strerror}", where=error.filename)
    status = _status(error)
    if status in (401, 403):
        return InputError(f"{what}: the Hub refuses it ({status})", next=_TOKEN)
    return InputError(f"{what}: the Hub answers {status}") if status in (400, 404, 410, 416) else None


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _asked(error: Exception) -> float:
    """Seconds that the Hub asks to wait, two minutes at most."""
    text = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return min(120.0, float(text)) if text.isdigit() else 0.0


def _words(error: Exception) -> str:
    status = _status(error)
    return f"the Hub answers {status}" if status else (str(error).splitlines() or [type(error).__name__])[0]

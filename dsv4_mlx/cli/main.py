"""The command `dsv4-mlx`: its subcommands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import functools
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.exceptions import TyperException

from dsv4_mlx import __version__
from dsv4_mlx.cli import (
    bench,
    chat,
    check,
    connect,
    convert,
    demo,
    doctor,
    download,
    evaluate,
    generate,
    info,
    logits,
    models,
    plan,
    serve,
    verify,
)
from dsv4_mlx.cli.console import write_crash_log
from dsv4_mlx.errors import EXIT_BUG, EXIT_INTERRUPT, EXIT_TERMINATED, Dsv4Error, Dsv4Warning
from dsv4_mlx.machine import wire_guard
from dsv4_mlx.machine.awake import Awake
from dsv4_mlx.machine.support import at_home, check_supported, is_completing

app = typer.Typer(
    name="dsv4-mlx",
    help="Run DeepSeek V4 Flash on your own Mac.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


PATH_ERRORS = (
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT,
)  # fmt: skip


_formatted = warnings.formatwarning


def _version(asked: bool) -> None:
    if asked:
        print(f"dsv4-mlx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Run DeepSeek V4 Flash on your own Mac."""
    check_supported()  # every command comes through here, and none has imported MLX yet


COMMANDS = (
    chat.chat,
    generate.generate,
    serve.serve,
    connect.connect,
    download.download,
    convert.convert,
    verify.verify,
    info.info,
    models.models,
    bench.bench,
    logits.logits,
    demo.demo,
    doctor.doctor,
    check.check,
    plan.plan,
)


# These wait for people, and know when there is work; or end at once.
NOT_AWAKE = (chat.chat, serve.serve, connect.connect, info.info)


def _begun(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with the tilde of every path it is given made the home folder, and the Mac kept awake to
    its end."""
    awake: Callable[[], AbstractContextManager[object]] = nullcontext if command in NOT_AWAKE else Awake

    @functools.wraps(command)
    def called(**given: Any) -> None:
        paths = {name: at_home(value) for name, value in given.items() if isinstance(value, Path)}
        with awake():
            command(**(given | paths))

    return called


for command in COMMANDS:
    app.command()(_begun(command))
app.command("eval")(_begun(evaluate.evaluate))  # a function of that name would hide Python's


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line; exits with the codes of errors.py."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # started with >&-: the next file opened would take its place
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - to the end
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
        signal.signal(signal.SIGHUP, _hung_up)
    warnings.formatwarning = _warning
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; messages have gone to stderr."""
    arguments = arguments or ["--help"]
    command = typer.main.get_command(app)
    try:
        if is_completing():
            command.main(arguments, "dsv4-mlx")
        # Not command.main(): it turns a closed pipe and Ctrl-C into exits of its own before we see them.
        with command.make_context("dsv4-mlx", list(arguments)) as context:
            code = command.invoke(context)
        sys.stdout.flush()  # here, where a closed pipe is still ours to handle
        return code if isinstance(code, int) else 0
    except typer.Exit as ended:
        return ended.exit_code
    except Dsv4Error as error:
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        return _usage(error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPT)
    except BrokenPipeError:
        # The reader of a pipe has gone: nobody is left to tell. Python's own flush at exit must not fail.
        done = _reader_gone(sys.stdout)
        _drop_output(sys.stdout if done else sys.stderr)
        return 0 if done else 3
    except OSError as error:
        return _system(error)
    except Exception:
        return _bug()


def _usage(error: TyperException, arguments: list[str]) -> int:
    from dsv4_mlx.cli import habits

    again = habits.meant(arguments)
    if again is not None:
        return run(again)
    message = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "dsv4-mlx"
    return _fail(f"{message}\n  next: {habits.instead(arguments, message) or f'{path} --help'}", 2)


def _reader_gone(stream: TextIO) -> bool:
    """Whether nobody reads this stream any more, told from the other stream that may have broken."""
    try:
        waiting = select.poll()
        waiting.register(stream.fileno(), 0)
        return bool(waiting.poll(0))  # errors and hang-ups are always reported
    except (OSError, ValueError):  # a stand-in without a descriptor
        return True


def _drop_output(stream: TextIO) -> None:
    """What the stream still holds goes nowhere: Python's flush at exit would fail once more."""
    with suppress(OSError, ValueError):  # a stand-in for stdout has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _system(error: OSError) -> int:
    """What no command has put into words: a path that can't be one or may not be used, else the machine."""
    if error.errno is None:
        return _bug()
    _drop_output(sys.stdout)
    where = "" if error.filename is None else f"\n  in   {error.filename}"
    return _fail(f"{error.strerror}{where}", 2 if error.errno in PATH_ERRORS else 3)


def _fail(message: str, code: int) -> int:
    try:
        print(f"error: {message}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it: the code still says what happened
        _drop_output(sys.stderr)
    return code


def _bug() -> int:
    log = write_crash_log(traceback.format_exc())
    what = traceback.format_exc().strip().splitlines()[-1]
    return _fail(f"this is a bug in dsv4-mlx: {what}\n  next: please report it with the file {log}", EXIT_BUG)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


def _hung_up(number: int, frame: FrameType | None) -> None:
    """The terminal was closed: an ordinary end, as sudden as it would be without a handler."""
    wire_guard.clear()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Ours without the place in the source that Python names."""
    if issubclass(category, Dsv4Warning):
        return f"warning: {message}\n"
    return _formatted(message, category, filename, lineno, line)

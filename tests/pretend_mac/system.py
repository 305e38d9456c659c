"""Python's own view of a Mac. Whatever a Mac has not is taken away; what it refuses is refused."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import fcntl
import json
import multiprocessing.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import types
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from pretend_mac import GIB, VARIABLE

# Imported above, or asked here, because they look at the system once: at their import.
_LOOKED_BEFORE = (multiprocessing.util, urllib.request, uuid, sysconfig.get_config_vars())

LARGEST = 2**31 - 1  # bytes of one read or write; Darwin answers EINVAL to more
NOT_ON_A_MAC = ("posix_fadvise", "posix_fallocate", "memfd_create", "copy_file_range", "splice", "eventfd",
                "sched_getaffinity", "O_DIRECT")  # fmt: skip
CONTROLS = {"F_RDADVISE": 44, "F_RDAHEAD": 45, "F_NOCACHE": 48, "F_FULLFSYNC": 51}
# What programs of the system do here, with their arguments as $1, $2 ...
PROGRAMS = {
    "/usr/bin/caffeinate": 'exec tail --pid="$3" -f /dev/null',  # -i -w PID
    "/usr/bin/tmutil": "exit 0",
    "/usr/bin/pbcopy": "cat >/dev/null",
    "/bin/df": 'echo Filesystem; echo "/dev/disk3s5 971350180 512000000 400000000 57% /System/Volumes/Data"',
    "/usr/sbin/diskutil": """cat <<'END'
<?xml version="1.0" encoding="UTF-8"?><plist version="1.0"><dict>
<key>FilesystemType</key><string>apfs</string><key>Internal</key><true/><key>VolumeName</key><string>Data</string></dict></plist>
END""",
    "/sbin/mount": "exit 0",
}

_mac: dict[str, Any] = {}
_looks = 0
_helpers: set[int] = set()


def note(what: str, **facts: Any) -> None:
    line = json.dumps({"pid": os.getpid(), "what": what, "facts": facts}) + "\n"
    descriptor = os.open(_mac["record"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def become_a_mac() -> None:
    from pretend_mac import mlx_calls

    _mac.update(json.loads(os.environ[VARIABLE]))
    _name_the_system()
    _limit_files()
    _pretend_programs()
    ctypes.CDLL = _Library  # type: ignore[misc]
    if _mac["haste"] != 1:
        real = time.monotonic
        time.monotonic = lambda: real() * _mac["haste"]
    mlx_calls.watch(_mac)
    sys.addaudithook(_audit)


def _name_the_system() -> None:
    sys.platform = "darwin"
    release = _mac["macos"]
    answers = {"system": "Darwin", "machine": "arm64", "processor": "arm", "release": "24.5.0", "node": "mac"}
    for name, answer in answers.items():
        setattr(platform, name, lambda answer=answer: answer)
    platform.mac_ver = lambda *_, **__: (release, ("", "", ""), "arm64")
    platform.platform = lambda *_, **__: f"macOS-{release}-arm64-arm-64bit"
    proxies: Any = types.ModuleType("_scproxy")  # of the system's settings, in C
    proxies._get_proxies, proxies._get_proxy_settings = dict, dict
    sys.modules["_scproxy"] = proxies
    certificates: Any = types.ModuleType("truststore._macos")  # of the keychain, by its library
    certificates._configure_context = lambda *_: nullcontext()
    certificates._verify_peercerts_impl = lambda *_, **__: None
    sys.modules["truststore._macos"] = certificates
    asked = os.sysconf

    def sysconf(name: Any) -> int:
        if name == "SC_PHYS_PAGES":
            return int(_mac["memory"] * GIB // asked("SC_PAGE_SIZE"))
        return asked(name)

    os.sysconf = sysconf


def _limit_files() -> None:
    for name in NOT_ON_A_MAC:
        if hasattr(os, name):
            delattr(os, name)
    for name in ("read", "pread", "write", "pwrite", "readv", "preadv", "writev", "pwritev"):
        setattr(os, name, _limited(name, getattr(os, name)))
    real = fcntl.fcntl
    by_number = {number: name for name, number in CONTROLS.items()}
    for name, number in CONTROLS.items():
        setattr(fcntl, name, number)

    def control(descriptor: Any, command: int, argument: Any = 0) -> Any:
        if command not in by_number:
            return real(descriptor, command, argument)
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        note("fcntl", command=by_number[command], size=os.fstat(number).st_size)
        if command == CONTROLS["F_FULLFSYNC"]:
            os.fsync(number)
        return 0

    fcntl.fcntl = control


def _limited(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(descriptor: int, what: Any, *rest: Any) -> Any:
        if isinstance(what, int):
            size = what
        elif name.endswith("v"):
            size = sum(memoryview(part).nbytes for part in what)
        else:
            size = memoryview(what).nbytes
        if size > LARGEST:
            note("too large", call=name, size=size)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, what, *rest)

    return call


class _Library(ctypes.CDLL):
    """With what only Darwin's own library has."""

    def __getattr__(self, name: str) -> Any:
        if name == "sysctlbyname":
            return _sysctlbyname
        return super().__getattr__(name)


def _facts() -> dict[str, int | str]:
    return {
        "hw.memsize": _mac["memory"] * GIB,
        "iogpu.wired_limit_mb": 0,
        "machdep.cpu.brand_string": _mac["chip"],
        "sysctl.proc_translated": 0,
    }


def _sysctlbyname(name: bytes, value: Any, size: Any, *_: Any) -> int:
    global _looks
    if name == b"kern.memorystatus_vm_pressure_level":
        levels = _mac["pressure"]
        level = levels[min(_looks, len(levels) - 1)]
        _looks += 1
        note("pressure", level=level)
        value._obj.value = level
        return 0
    found = _facts().get(name.decode())
    if not isinstance(found, int):
        return -1
    value._obj.value = found
    return 0


def _pretend_programs() -> None:
    begin, found = subprocess.Popen.__init__, shutil.which

    def start(self: Any, args: Any, *rest: Any, **how: Any) -> None:
        name = args[0] if isinstance(args, list | tuple) else ""
        script = _script(str(name), list(args)) if name else None
        if script is not None:
            note("program", command=[str(part) for part in args])
            args = ["/bin/sh", "-c", script, *args]
        begin(self, args, *rest, **how)
        if name == "/usr/bin/caffeinate":
            _helpers.add(self.pid)

    def which(name: Any, *rest: Any, **how: Any) -> Any:
        of_the_system = [path for path in PROGRAMS if path.rsplit("/", 1)[1] == name]
        return of_the_system[0] if of_the_system else found(name, *rest, **how)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]
    shutil.which = which  # type: ignore[assignment]


def _script(name: str, args: list[str]) -> str | None:
    """What runs instead of a program that a Mac has; None for others."""
    if name == "/usr/sbin/sysctl":
        found = _facts().get(args[-1])
        return "exit 1" if found is None else f"echo '{found}'"
    if name == "tmutil":
        return PROGRAMS["/usr/bin/tmutil"]
    return PROGRAMS.get(name)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.kill" and arguments[0] in _helpers:
        _helpers.discard(arguments[0])
        note("sleep allowed")
    elif event in ("open", "os.listdir") and str(arguments[0]).startswith(("/proc/", "/sys/")):
        note("linux", path=str(arguments[0]))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])

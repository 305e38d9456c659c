"""The disk that a folder lies on: what it is, what it can't hold, and who should leave it alone.

Spotlight and Time Machine are kept away from a model: 160 GB that are worth neither an index nor a backup.

Time Machine: `tmutil addexclusion`, which marks the folder itself and needs no rights. Spotlight: the file
`.metadata_never_index`, a custom that Apple does not document; where it is not heeded, nothing is lost.
"""

from __future__ import annotations

import fcntl
import os
import plistlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.parsers.expat import ExpatError

FAT32_LARGEST = (4 << 30) - 1
_NAMES = {"apfs": "APFS", "exfat": "exFAT", "fat32": "FAT32", "hfs": "Mac OS Extended", "ntfs": "NTFS"}
_NETWORK = frozenset({"nfs", "nfs4", "smbfs", "smb3", "cifs", "afpfs", "webdav", "davfs", "fuse.sshfs", "9p"})


@dataclass(frozen=True)
class Volume:
    """`kind`: the file system, in lower case. `bus`: how the disk is connected, where the system says it."""

    name: str
    kind: str
    external: bool = False
    bus: str = ""

    @property
    def network(self) -> bool:
        return self.kind in _NETWORK

    @property
    def largest_file(self) -> int | None:
        """Bytes of the largest file it can hold; None where that is more than any model has."""
        return FAT32_LARGEST if self.kind == "fat32" else None

    @property
    def plain(self) -> bool:
        """Nothing that a person would have to know."""
        return not (self.network or self.external or self.kind in ("exfat", "fat32", "hfs", "ntfs"))

    def describe(self) -> str:
        """For people: what it is."""
        if self.network:
            return f"{self.name!r}, a network volume ({self.kind})"
        where = "an external disk" if self.external else "an internal disk"
        bus = f" ({self.bus})" if self.external and self.bus else ""
        return f"{self.name!r}, {where}{bus} with {_NAMES.get(self.kind, self.kind)}"

    def warning(self) -> str:
        """What to expect of it, in one sentence; empty where there is nothing to say."""
        if self.network:
            return "the model is read over the network at every start, and paged experts at every token"
        if self.kind in ("exfat", "fat32"):
            return "it keeps no journal: unplugged while it is written to, it can lose files; APFS would not"
        if self.kind == "ntfs":
            return "macOS can't write to NTFS without another driver"
        return ""


def free_bytes(folder: Path) -> int:
    """Free space of the disk that holds the folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def purgeable(platform: str = sys.platform) -> str:
    """What else the Finder calls free, in brackets, to follow a number of free bytes; empty elsewhere."""
    what = "without purgeable space such as local snapshots: `tmutil listlocalsnapshots /`"
    return f" ({what})" if platform == "darwin" else ""


def to_disk(descriptor: int) -> None:
    """Force a file, or a folder's names, to the disk: on macOS past the disk's own cache. Raises OSError."""
    command = getattr(fcntl, "F_FULLFSYNC", None)
    if command is not None:
        with suppress(OSError):  # a file system that doesn't know it
            fcntl.fcntl(descriptor, command)
            return
    os.fsync(descriptor)


Ask = Callable[[Sequence[str]], str | None]


def ask(command: Sequence[str]) -> str | None:
    """What it prints; None if it is not there, fails, or takes more than ten seconds.

    Named by its path: Python then spawns it, and need not fork a process that maps a whole model.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
            close_fds=False,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


MOUNTS = Path("/proc/self/mountinfo")
BLOCK = Path("/sys/dev/block")


def _linux_volume(path: Path) -> Volume | None:
    """From the table of mounts, and where the block device hangs."""
    try:
        table = MOUNTS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = mount_of(table, path)
    if found is None:
        return None
    number, place, kind = found
    usb = "/usb" in os.path.realpath(BLOCK / number)
    return Volume(place, kind, external=usb, bus="USB" if usb else "")


def mount_of(table: str, path: Path) -> tuple[str, str, str] | None:
    """(device number, mount point, file system) of the mount that holds `path`: the last of the longest.

    A line is: id, parent, major:minor, root, mount point, options, ..., "-", file system, source, options.
    """
    best: tuple[str, str, str] | None = None
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        columns, kinds = before.split(), after.split()
        if len(columns) < 5 or not kinds:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), columns[4])
        holds = Path(place) == path or Path(place) in path.parents
        if holds and (best is None or len(place) >= len(best[1])):
            best = columns[2], place, {"vfat": "fat32", "ntfs3": "ntfs"}.get(kinds[0], kinds[0])
    return best


def _mac_volume(path: Path, ask: Ask) -> Volume | None:
    """`df` names the device, `diskutil` tells what it is, `mount` what comes over a network."""
    device = device_of(ask(["/bin/df", "-P", str(path)]) or "")
    if device is None:
        return None
    if device.startswith("/dev/"):
        return from_diskutil(ask(["/usr/sbin/diskutil", "info", "-plist", device]) or "")
    return from_mount(ask(["/sbin/mount"]) or "", device)


def device_of(df: str) -> str | None:
    """The first column of the second line, which may hold spaces; numbers follow it."""
    lines = df.splitlines()
    found = re.match(r"(.+?)\s+\d+\s+-?\d+\s+-?\d+\s+\d+%\s", lines[1]) if len(lines) > 1 else None
    return found[1] if found else None


def from_diskutil(plist: str) -> Volume | None:
    """Of `diskutil info -plist DEVICE`."""
    try:
        facts = plistlib.loads(plist.encode())
    except (plistlib.InvalidFileException, ExpatError, ValueError):
        return None
    if not isinstance(facts, dict):
        return None
    kind = str(facts.get("FilesystemType") or "unknown").lower()
    if kind == "msdos":
        kind = "fat32" if "32" in str(facts.get("FilesystemName")) else "fat16"
    name = str(facts.get("VolumeName") or facts.get("DeviceIdentifier") or "unnamed")
    external = facts.get("Internal") is False or facts.get("RemovableMediaOrExternalDevice") is True
    return Volume(name, kind, external, str(facts.get("BusProtocol") or ""))


def from_mount(mount: str, device: str) -> Volume | None:
    """Of the line `DEVICE on PLACE (KIND, ...)`."""
    for line in mount.splitlines():
        found = re.fullmatch(re.escape(device) + r" on (.+) \((\w+)[,)].*", line)
        if found:
            return Volume(Path(found[1]).name or found[1], found[2].lower())
    return None


def volume_of(path: Path, ask: Ask = ask, platform: str = sys.platform) -> Volume | None:
    """The volume of `path`, or of the nearest folder above that is there; None if the system doesn't say."""
    while not path.exists() and path != path.parent:
        path = path.parent
    path = path.resolve()
    return _mac_volume(path, ask) if platform == "darwin" else _linux_volume(path)


MARK = ".metadata_never_index"


def can_exclude() -> bool:
    """Whether this system has a Time Machine."""
    return shutil.which("tmutil") is not None


def exclude(folder: Path, ask: Ask = ask) -> list[str]:
    """Do both; what could not be done, in sentences."""
    failed = []
    try:
        (folder / MARK).touch()
    except OSError as error:
        failed.append(f"Spotlight was not kept away from {folder}: {error.strerror or error}")
    if ask(["tmutil", "addexclusion", str(folder)]) is None:
        failed.append(f"Time Machine was not kept away from {folder}: `tmutil addexclusion` failed")
    return failed

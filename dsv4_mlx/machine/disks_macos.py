"""macOS: `df` names the device, `diskutil` tells what it is, `mount` what comes over a network."""

from __future__ import annotations

import plistlib
import re
from pathlib import Path
from xml.parsers.expat import ExpatError

from dsv4_mlx.machine.disks import Volume
from dsv4_mlx.machine.disks_ask import Ask


def volume_of(path: Path, ask: Ask) -> Volume | None:
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

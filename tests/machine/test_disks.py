"""What a disk is, from what the systems print."""

from __future__ import annotations

import fcntl
import os
import plistlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from dsv4_mlx.convert import folder
from dsv4_mlx.convert.folder import check_sizes
from dsv4_mlx.convert.journal import Journal
from dsv4_mlx.errors import DiskFull, InputError
from dsv4_mlx.machine.disks import (
    Volume,
    ask,
    device_of,
    from_diskutil,
    from_mount,
    mount_of,
    purgeable,
    volume_of,
)

DF = """Filesystem     512-blocks       Used  Available Capacity  Mounted on
{device} 1942700360  908104400 1004040416    48%    {place}
"""
MOUNT = """/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
devfs on /dev (devfs, local, nobrowse)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse, protect, root data)
//ada@nas.local/big models on /Volumes/big models (smbfs, nodev, nosuid, mounted by ada)
nas:/export (old) on /Volumes/export (nfs, nodev, nosuid)
"""
INTERNAL = {
    "BusProtocol": "Apple Fabric", "DeviceIdentifier": "disk3s5", "FilesystemName": "APFS",
    "FilesystemType": "apfs", "Internal": True, "RemovableMediaOrExternalDevice": False,
    "SolidState": True, "VolumeName": "Data",
}  # fmt: skip
STICK = INTERNAL | {
    "BusProtocol": "USB", "FilesystemName": "MS-DOS FAT32", "FilesystemType": "msdos", "Internal": False,
    "RemovableMediaOrExternalDevice": True, "VolumeName": "STICK",
}  # fmt: skip
EXFAT = STICK | {"FilesystemName": "ExFAT", "FilesystemType": "exfat", "VolumeName": "T7"}
THUNDERBOLT = INTERNAL | {"BusProtocol": "PCI-Express", "Internal": False, "VolumeName": "Fast"}


class Mac:
    """The programs of a Mac whose disk is `facts`, or a network volume."""

    def __init__(self, facts: dict[str, object] | None, device: str = "/dev/disk4s1") -> None:
        self.facts, self.device = facts, device

    def __call__(self, command: Sequence[str]) -> str | None:
        if command[0].endswith("/df"):
            return DF.format(device=self.device, place="/Volumes/some where")
        if command[0].endswith("/diskutil"):
            assert command[1:] == ["info", "-plist", self.device]
            return None if self.facts is None else plistlib.dumps(self.facts).decode()
        assert command[0].endswith("/mount")
        return MOUNT


@pytest.mark.parametrize(
    ("facts", "words", "plain"),
    [
        (INTERNAL, "'Data', an internal disk with APFS", True),
        (STICK, "'STICK', an external disk (USB) with FAT32", False),
        (EXFAT, "'T7', an external disk (USB) with exFAT", False),
        (THUNDERBOLT, "'Fast', an external disk (PCI-Express) with APFS", False),
        (INTERNAL | {"FilesystemType": "hfs"}, "'Data', an internal disk with Mac OS Extended", False),
        ({"FilesystemType": "ufs"}, "'unnamed', an internal disk with ufs", True),
    ],
)
def test_a_disk_of_a_mac(facts: dict[str, object], words: str, plain: bool, tmp_path: Path) -> None:
    found = volume_of(tmp_path / "not" / "there", Mac(facts), "darwin")
    assert found is not None and (found.describe(), found.plain) == (words, plain)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("//ada@nas.local/big models", "'big models', a network volume (smbfs)"),
        ("nas:/export (old)", "'export', a network volume (nfs)"),
    ],
)
def test_a_network_volume_of_a_mac(device: str, words: str, tmp_path: Path) -> None:
    found = volume_of(tmp_path, Mac(None, device), "darwin")
    assert found is not None and found.network and not found.plain and found.describe() == words
    assert "over the network" in found.warning()


@pytest.mark.parametrize("text", ["", "x", "<plist>", "<?xml version='1.0'?><plist><array/></plist>", "\0"])
def test_nonsense_is_no_disk(text: str, tmp_path: Path) -> None:
    assert device_of(text) is None and from_diskutil(text) is None and from_mount(text, "x") is None
    assert volume_of(tmp_path, lambda command: text, "darwin") is None
    assert volume_of(tmp_path, lambda command: None, "darwin") is None


def test_programs_that_fail_say_nothing() -> None:
    assert ask(["/no/such/program"]) is None and ask(["false"]) is None and ask(["echo", "x"]) == "x\n"


TABLE = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 8:17 / /media/ada/My\040Disk rw,nosuid shared:9 - vfat /dev/sdb1 rw
41 22 8:33 / /media/ada/T7 rw shared:9 - exfat /dev/sdc1 rw
42 22 0:52 / /net/nas rw shared:10 - nfs4 nas:/export rw,vers=4.2
43 42 0:53 / /net/nas/deeper rw - fuse.sshfs ada@nas:/ rw
torn line
"""


@pytest.mark.parametrize(
    ("path", "number", "kind"),
    [
        ("/srv/ada", "254:0", "ext4"),
        ("/media/ada/My Disk/models", "8:17", "fat32"),
        ("/media/ada/T7", "8:33", "exfat"),
        ("/media/ada/T70", "254:0", "ext4"),
        ("/net/nas/x/y", "0:52", "nfs4"),
        ("/net/nas/deeper/x", "0:53", "fuse.sshfs"),
    ],
)
def test_a_mount_of_linux(path: str, number: str, kind: str) -> None:
    found = mount_of(TABLE, Path(path))
    assert found is not None and (found[0], found[2]) == (number, kind)


def test_this_machine_says_something(tmp_path: Path) -> None:
    found = volume_of(tmp_path)
    assert found is not None and found.kind and found.describe()


def test_a_file_that_fat32_can_not_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stick = Volume("STICK", "fat32", True, "USB")
    monkeypatch.setattr("dsv4_mlx.convert.folder.volume_of", lambda path: stick)
    check_sizes(tmp_path, {"a": 2**32 - 1, "b": 5})
    with pytest.raises(InputError, match="FAT32, whose files end at 4.3 GB; b has 4.3 GB") as raised:
        check_sizes(tmp_path, {"a": 5, "b": 2**32})
    assert "APFS or exFAT" in str(raised.value.next)
    monkeypatch.setattr("dsv4_mlx.convert.folder.volume_of", lambda path: Volume("T7", "exfat", True))
    check_sizes(tmp_path, {"b": 2**40})
    monkeypatch.setattr("dsv4_mlx.convert.folder.volume_of", lambda path: None)
    check_sizes(tmp_path, {"b": 2**40})
    assert "no journal" in stick.warning()


@pytest.mark.parametrize("refused", [False, True])
def test_macos_is_told_to_empty_the_disks_own_cache(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each converted file, its folder and the journal, after which a source may be deleted."""
    full: list[int] = []
    plain: list[int] = []

    def control(descriptor: int, command: int, value: int = 0) -> None:
        full.append(command)
        if refused:
            raise OSError("a network volume")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", plain.append)
    with folder.finished_file(tmp_path / "layer") as out:
        out.write(b"bytes", 0)
    assert full == [51, 51]
    Journal(tmp_path).add("layer", {})
    assert full == [51, 51, 51]
    assert len(plain) == (3 if refused else 0)


def test_purgeable_space_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert purgeable("linux") == "" and "tmutil listlocalsnapshots" in purgeable("darwin")
    monkeypatch.setattr(folder, "purgeable", lambda: purgeable("darwin"))
    with pytest.raises(DiskFull, match=r"are free \(without purgeable space.*missing"):
        folder.check_space(tmp_path, 1 << 60)

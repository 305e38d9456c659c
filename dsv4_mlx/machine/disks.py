"""A disk as it matters to who stores a model on it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

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

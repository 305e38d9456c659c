"""Match a checkpoint's tensors to the official table: each used once, or one error that lists them."""

from __future__ import annotations

from dsv4_mlx.checkpoint.header import HeaderEntry
from dsv4_mlx.checkpoint.inventory import AN_EXPERT, EXPERT_DTYPES, Inventory, Tensor, inventory
from dsv4_mlx.checkpoint.source import Source, listed
from dsv4_mlx.errors import InputError


def match(source: Source) -> Inventory:
    """The weights of this checkpoint. Raises InputError that names what is missing, extra or misshapen."""
    table = inventory(source.config)
    found: dict[str, HeaderEntry] = dict(source.entries())
    _same_experts(source, found)
    missing: list[str] = []
    wrong: list[str] = []

    def check(tensor: Tensor, entry: HeaderEntry) -> None:
        if entry.shape != tensor.shape or entry.dtype not in tensor.dtypes:
            expected = f"{' or '.join(tensor.dtypes)} {list(tensor.shape)}"
            wrong.append(f"{tensor.name} is {entry.dtype} {list(entry.shape)}, expected {expected}")

    for tensor in table.tensors():
        entry = found.pop(tensor.name, None)
        if entry is None:
            missing.append(tensor.name)
        else:
            check(tensor, entry)
    for copy in table.copies:
        if copy.name in found:
            check(copy, found.pop(copy.name))
    problems = []
    if missing:
        problems.append(f"missing {len(missing)}: {listed(missing)}")
    if found:
        problems.append(f"unknown {len(found)}: {listed(list(found))}")
    if wrong:
        problems.append(f"misshapen {len(wrong)}: {listed(wrong, '; ')}")
    if problems:
        raise InputError(
            "the tensors are not those that config.json describes: " + ". ".join(problems),
            where=source.folder,
            next="use config.json, index and shards of one official release",
        )
    return table


def _same_experts(source: Source, found: dict[str, HeaderEntry]) -> None:
    """Experts of another format than config.json says: one sentence, not thousands of shapes."""
    said = source.config.expert_format
    if AN_EXPERT in found and found[AN_EXPERT].dtype not in EXPERT_DTYPES:
        raise InputError(
            f"the routed experts are {found[AN_EXPERT].dtype}: packed anew by another program; expected "
            f"{' or '.join(EXPERT_DTYPES)}",
            where=source.folder / source.where[AN_EXPERT],
            next="use the official checkpoint",
        )
    stored = EXPERT_DTYPES.get(found[AN_EXPERT].dtype) if AN_EXPERT in found else None
    if stored is not None and said is not None and stored != said:
        raise InputError(
            f"the routed experts are {stored.upper()}, config.json says {said.upper()} (expert_dtype)",
            where=source.folder / source.where[AN_EXPERT],
            next="use config.json and shards of one release",
        )

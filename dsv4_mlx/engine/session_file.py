"""A session's state as a file, so that a long conversation taken up again needs no second prefill.

Saved is the last restart point that the conversation's next prompt will share: a cut, so what follows is
computed exactly as in a session that was never saved. A file is used only where the same bits would be
computed (`identity`), and only if its bytes are the ones written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from dsv4_mlx.checkpoint.manifest import Manifest
from dsv4_mlx.engine.chunking import common_prefix
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.session import Session
from dsv4_mlx.machine import mlx_switches
from dsv4_mlx.model.state import ModelState, Ring, RowBuffer
from dsv4_mlx.ops.table import NUMERIC_VERSION

FORMAT = "1"


def identity(manifest: Manifest, options: EngineOptions, session: Session) -> str:
    """What must be equal for a saved state to hold the bits that would be computed here and now, a line each.

    The system is named because it holds the compiler of the Metal kernels.
    """
    parts = {
        "format": FORMAT,
        "model": hashlib.sha256(manifest.to_json().encode()).hexdigest(),
        "numerics": options.numerics,
        "numeric version": NUMERIC_VERSION,
        "ops": options.ops.identity(),
        "dtype": session.model.dtype,
        "device": "metal" if mx.metal.is_available() else "cpu",
        "architecture": mx.device_info()["architecture"],
        "mlx": version("mlx"),
        "tf32": mlx_switches.setting(),
        "system": f"{platform.system()} {platform.mac_ver()[0]}",
    }
    return "\n".join(f"{name}: {value}" for name, value in parts.items())


def point_to_save(session: Session, prompt: Sequence[int]) -> int:
    """Tokens that `save` would keep for a conversation that goes on as `prompt`; 0 for none, and for a
    session of which other ops than the model's present ones computed a part."""
    if not session.pure:
        return 0
    shared = common_prefix(session.tokens, prompt)
    return max(
        (p.length for p in session._restart if p.length <= shared and session._state.holds(p)), default=0
    )


def saved_bytes(session: Session, length: int) -> int:
    """Bytes of a file of `length` tokens."""
    return sum(array.nbytes for array in _arrays(session, length).values())


def save(session: Session, length: int, path: Path, who: str) -> None:
    """Write the restart point at `length` tokens. Raises OSError, RuntimeError."""
    arrays = _arrays(session, length)
    mx.eval(list(arrays.values()))
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.safetensors")
    try:
        mx.save_safetensors(str(temporary), arrays, {"identity": who, "digest": _digest(arrays)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o600)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(session: Session, path: Path, who: str) -> int:
    """Make the session what was saved; its tokens, or 0 where the file is not for it or not whole."""
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = dict(loaded[0]), loaded[1]
        tokens = [int(token) for token in np.array(arrays["tokens"])]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return 0
    if metadata.get("identity") != who or len(tokens) > session.context:
        return 0
    if common_prefix(session.tokens, tokens) == len(tokens):
        return 0  # it knows as much already
    state = session.model.new_state(growth=session.growth)
    state.reserve(len(tokens))
    if not _fits(state, arrays, len(tokens)) or metadata.get("digest") != _digest(arrays):
        return 0
    for name, buffer, ratio in _buffers(state):
        if isinstance(buffer, Ring):
            buffer.buffer = mx.array(arrays[name])
        elif len(tokens) // ratio:
            buffer.write(arrays[name], 0)
    mx.eval(state.arrays())
    state.length = state.reached = len(tokens)
    session.adopt(tokens, state)
    return len(tokens)


def prune(folder: Path, most: int) -> None:
    """Delete all but the `most` latest files."""
    with contextlib.suppress(OSError):
        files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[most:]:
            path.unlink(missing_ok=True)


def _arrays(session: Session, length: int) -> dict[str, mx.array]:
    state = session._state
    point = next(p for p in session._restart if p.length == length)
    rings = iter(point.rings)
    found = {"tokens": mx.array(session.tokens[:length], mx.int32)}
    for name, buffer, ratio in _buffers(state):
        found[name] = next(rings) if isinstance(buffer, Ring) else buffer.read(length // ratio)
    return found


def _buffers(state: ModelState) -> Iterator[tuple[str, Ring | RowBuffer, int]]:
    """Every buffer with a name and its layer's ratio, rings in the order of a snapshot."""
    for i, layer in enumerate(state.layers):
        for j, buffer in enumerate(layer.buffers()):
            yield f"{i}.{j}", buffer, layer.kind.ratio


def _fits(state: ModelState, arrays: dict[str, mx.array], length: int) -> bool:
    wanted = {"tokens"}
    for name, buffer, ratio in _buffers(state):
        wanted.add(name)
        shape = list(buffer.buffer.shape)
        if isinstance(buffer, RowBuffer):
            shape[1] = length // ratio
        array = arrays.get(name)
        if array is None or list(array.shape) != shape or array.dtype != buffer.buffer.dtype:
            return False
    return wanted == arrays.keys()


def _digest(arrays: dict[str, mx.array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype};".encode())
        if arrays[name].size:
            digest.update(np.ascontiguousarray(np.array(mx.contiguous(arrays[name]).view(mx.uint8))).data)
    return digest.hexdigest()

"""What a process holds while it pages is what was announced, after a hundred tokens and after ten thousand.

Announced: slots, the other weights as stored, and the state. The rest, a few megabytes of program and of
MLX's freed buffers, must fit in the margin.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
from paging.memory_of_paging import watch, wide_folder

TOKENS = 10_000
WITHIN = 0.03


@pytest.mark.long
def test_private_memory_over_ten_thousand_tokens(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder, spawn = wide_folder(tmp_path), get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=watch, args=(str(folder), "90%", TOKENS, 10_240, send))
    process.start()
    send.close()  # a child that dies closes the other end
    announced, banks, samples = receive.recv()
    process.join()
    record_property("announced MB", round(announced / 1e6, 1))
    record_property(
        "private MB at the start and the end", [round(s[1] / 1e6, 1) for s in samples[:: len(samples) - 1]]
    )
    record_property("MLX active MB, most", round(max(active for _, _, active in samples) / 1e6, 1))
    assert banks > 0.9 * announced
    assert samples[-1][0] == TOKENS
    for tokens, private, active in samples:
        assert abs(private - announced) <= WITHIN * announced, (tokens, private, announced)
        assert abs(active - announced) <= WITHIN * announced, (tokens, active, announced)

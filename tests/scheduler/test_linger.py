"""What is held while answers are made: when it goes on and off."""

from __future__ import annotations

from dsv4_mlx.machine.awake import SECONDS, Linger


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def on(self) -> None:
        self.said.append("on")

    def off(self) -> None:
        self.said.append("off")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_on_once_for_work_and_off_a_while_after_the_last() -> None:
    log, clock = Log(), Clock()
    linger = Linger(log, clock)
    assert linger.idle() is None and log.said == []
    linger.busy()
    linger.busy()
    assert log.said == ["on"]
    assert linger.idle() == SECONDS == 60
    clock.now += 59
    assert linger.idle() == 1 and log.said == ["on"]
    linger.busy()  # a pause between two calls
    clock.now += 500
    assert linger.idle() == 60 and log.said == ["on"]
    clock.now += 60
    assert linger.idle() is None and log.said == ["on", "off"]
    assert linger.idle() is None
    linger.busy()
    linger.close()
    linger.close()
    assert log.said == ["on", "off", "on", "off"]

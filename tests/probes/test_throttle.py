"""When a machine counts as slowed down, and who is told."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from edge.probes.host import Roots
from edge.probes.readings import BoardReading, GpuReading, HostReading, Readings
from edge.probes.sample import Probes
from edge.probes.throttle import Change, ThrottleWatch
from tests.probes.boards import PLAIN, plant, rewrite
from tests.waiting import until


def at(at_s: float, *reasons: str, cooling: float = 0.0, over_current: int = 0, cpu: int | None = None) -> Readings:
    gpu = GpuReading(0, "GPU-1", "a card", {}, throttle=frozenset(reasons))
    host = HostReading(cooling={"cpufreq-cpu0": cooling}, cpu_throttles=cpu)
    return Readings(at_s, host, (gpu,), board=BoardReading("a board", over_current={"oc3": over_current}))


def test_heat_begins_it_at_once_and_it_is_over_when_there_was_no_sign_for_a_while() -> None:
    watch = ThrottleWatch()
    assert watch.look(at(0.0)) is None and watch.active is False
    assert watch.look(at(5.0, "hw_thermal")) == Change(True, ("gpu hw_thermal",))
    assert watch.look(at(10.0)) is None and watch.look(at(30.0)) is None and watch.active
    assert watch.look(at(35.0)) == Change(False, ())
    assert watch.begins == 1 and watch.active is False


def test_signs_that_come_and_go_are_one_slowdown() -> None:
    watch = ThrottleWatch()
    changes = [watch.look(at(second, *(["sw_thermal"] if second % 20 == 0 else []))) for second in range(0, 200, 5)]
    assert [change for change in changes if change is not None] == [Change(True, ("gpu sw_thermal",))]


def test_a_power_cap_is_how_a_card_always_runs() -> None:
    watch = ThrottleWatch()
    assert watch.look(at(0.0, "power_cap")) is None and watch.active is False


def test_the_kernels_cooling_and_counters_that_grow_are_signs() -> None:
    assert ThrottleWatch().look(at(0.0, cooling=0.3)) == Change(True, ("kernel holds cpufreq-cpu0 back",))
    watch = ThrottleWatch()
    assert watch.look(at(0.0, over_current=7, cpu=2)) is None, "what was counted before the start is of no time we know"
    assert watch.look(at(5.0, over_current=7, cpu=2)) is None
    assert watch.look(at(10.0, over_current=8, cpu=3)) == Change(True, ("cpu heat", "oc3"))


def test_where_nothing_can_tell_nothing_is_said() -> None:
    watch = ThrottleWatch()
    assert watch.look(Readings(0.0, HostReading())) is None and watch.active is None


def test_a_card_that_is_lost_while_it_is_hot_is_not_slowed_down_for_ever() -> None:
    watch = ThrottleWatch()
    watch.look(at(0.0, "hw_thermal"))
    assert watch.look(Readings(20.0, HostReading())) is None and watch.active
    assert watch.look(Readings(40.0, HostReading())) == Change(False, ()) and watch.active is None


def test_a_counter_that_cannot_be_read_for_once_hides_nothing() -> None:
    watch = ThrottleWatch()
    watch.look(at(0.0, cpu=2))
    watch.look(at(5.0))
    assert watch.look(at(10.0, cpu=3)) == Change(True, ("cpu heat",))


def test_the_thread_tells_of_a_change_and_its_readings_grow_old(tmp_path: Path) -> None:
    roots = plant(tmp_path, PLAIN)
    told, changed = list[Change](), threading.Event()

    def tell(change: Change) -> None:
        told.append(change)
        changed.set()

    probes = Probes(roots, 0.02, tell)
    assert probes.now() is None
    probes.start()
    while probes.now() is None:
        time.sleep(0.01)
    rewrite(tmp_path / "sys/class/thermal/cooling_device0/cur_state", "4\n")
    assert changed.wait(60)
    assert told[0].begins and probes.throttle.active
    newest = until(probes.now)
    assert newest.host.cooling == {"Processor": 0.4}
    probes.stop()


def test_readings_of_a_round_that_hangs_are_none(tmp_path: Path) -> None:
    probes = Probes(Roots(tmp_path, tmp_path, tmp_path), 0.02, lambda change: None)

    def shown(age_s: float) -> bool:
        probes._newest = Readings(time.monotonic() - age_s, HostReading())
        return probes.now() is not None

    assert not shown(5.1)
    until(lambda: shown(1.0))  # unless so much time passes between the two


def test_a_strange_board_does_not_end_the_thread(tmp_path: Path) -> None:
    roots = plant(tmp_path, {"proc/stat": "cpu  x y\n"})
    probes = Probes(roots, 0.01, lambda change: None)
    probes.start()
    time.sleep(0.1)
    assert probes.now() is None
    rewrite(tmp_path / "proc/stat", "cpu  100\n")
    while probes.now() is None:
        time.sleep(0.01)
    probes.stop()

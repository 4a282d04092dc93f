from datetime import UTC
from pathlib import Path

import pytest

from persephonee.clients.runtime.device_state import LinuxDevice, ScriptedClock, always_ready, hour_of, night_charging

HOUR = 3600.0
MIDNIGHT = 1_767_225_600.0


@pytest.fixture
def root(tmp_path: Path):
    """Return a function that writes files as Linux shows them, and the device that reads them."""

    def write(**files: str) -> LinuxDevice:
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        return LinuxDevice(ScriptedClock(MIDNIGHT), root=tmp_path)

    return write


def supply(name: str, **values: str) -> dict[str, str]:
    return {f"sys__class__power_supply__{name}__{key}": value for key, value in values.items()}


def test_a_board_that_says_nothing_is_plugged_in_and_the_rest_is_unknown(root):
    state = root().read()
    assert state.plugged_in
    assert (state.battery, state.load, state.temperature_celsius, state.free_memory_bytes) == (None,) * 4


def test_a_laptop_on_battery_is_not_plugged_in(root):
    mains = supply("AC", type="Mains", online="0")
    state = root(**mains, **supply("BAT0", type="Battery", capacity="57", status="Discharging")).read()
    assert (state.plugged_in, state.battery) == (False, 0.57)


def test_a_laptop_on_mains_is_plugged_in(root):
    mains = supply("AC", type="Mains", online="1")
    state = root(**mains, **supply("BAT0", type="Battery", capacity="100", status="Full")).read()
    assert (state.plugged_in, state.battery) == (True, 1.0)


def test_a_battery_that_is_charging_is_enough_where_no_charger_shows_itself(root):
    state = root(**supply("battery", type="Battery", capacity="81", status="Charging")).read()
    assert (state.plugged_in, state.battery) == (True, 0.81)


def test_a_charger_that_stops_at_its_limit_still_feeds_the_device(root):
    state = root(**supply("BAT1", type="Battery", capacity="80", status="Not charging")).read()
    assert (state.plugged_in, state.battery) == (True, 0.8)


def test_the_battery_of_a_wireless_mouse_is_not_the_device_s(root):
    mouse = supply("hidpp_battery_0", type="Battery", scope="Device", capacity="5", status="Discharging")
    state = root(**mouse).read()
    assert (state.plugged_in, state.battery) == (True, None)


def test_the_emptiest_of_two_batteries_counts_and_an_absent_one_does_not(root):
    batteries = {
        **supply("BAT0", type="Battery", capacity="90", status="Charging"),
        **supply("BAT1", type="Battery", capacity="20", status="Charging"),
        **supply("BAT2", type="Battery", capacity="0", present="0"),
    }
    assert root(**batteries).read().battery == 0.2


def test_load_temperature_and_memory_are_read(root, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    state = root(
        proc__loadavg="2.00 1.50 1.00 1/200 4242",
        proc__meminfo="MemTotal: 4000000 kB\nMemFree: 100 kB\nMemAvailable: 2048 kB",
        sys__class__thermal__thermal_zone0__temp="48312",
        sys__class__thermal__thermal_zone1__temp="0",
        sys__class__thermal__thermal_zone2__temp="55000",
    ).read()
    assert state.load == 0.5
    assert state.temperature_celsius == 55.0
    assert state.free_memory_bytes == 2 * 2**20


def test_garbage_in_a_file_is_the_same_as_no_file(root):
    state = root(proc__loadavg="", sys__class__thermal__thermal_zone0__temp="N/A", **supply("BAT0", type="Battery"))
    assert (state.read().load, state.read().temperature_celsius, state.read().battery) == (None, None, 1.0)


def test_this_machine_answers():
    state = LinuxDevice(ScriptedClock(MIDNIGHT)).read()
    assert state.battery is None or 0 <= state.battery <= 1
    assert state.load is None or state.load >= 0


def test_the_scripted_phone_charges_by_night():
    night, day = night_charging(MIDNIGHT + 2 * HOUR, UTC), night_charging(MIDNIGHT + 15 * HOUR, UTC)
    assert (night.plugged_in, night.battery, night.load) == (True, 1.0, 0.05)
    assert not day.plugged_in
    assert day.battery == pytest.approx(0.7)
    assert always_ready(MIDNIGHT, UTC).plugged_in


def test_the_hour_counts_minutes():
    assert hour_of(MIDNIGHT + 6.5 * HOUR, UTC) == 6.5

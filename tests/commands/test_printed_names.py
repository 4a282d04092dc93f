"""Names that others gave, of files, users and blocks, are printed as they are: rich would take [/b] for its markup."""

import io
from types import SimpleNamespace

from rich.console import Console

from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.clients.runtime.device_settings import Prediction
from persephonee.clients.runtime.device_state import ScriptedClock
from persephonee.clients.runtime.device_status import DeviceStatus
from persephonee.clients.runtime.event_log import Event
from persephonee.clients.runtime.persistent_state import Counters
from persephonee.clients.runtime.phases import OrchestratorState
from persephonee.commands import doctor
from persephonee.commands.device_output import DeviceLines, show_status
from persephonee.commands.models.exits_table import exits_table
from persephonee.commands.personalise import _show
from persephonee.fl_app.deployment.findings import wrong
from persephonee.fl_app.server_side.run_status import FAILED, RunStatus
from persephonee.fl_app.simulation import run_progress

REASONS = ("the label '[/b]' is no class: give a, b, ...", "photo[final].png is no image", "c[red]d.png is no image")


def test_the_reasons_of_a_device_s_events(capsys):
    events = [Event(seq=i, wall=0.0, kind="skip", reason=reason, details={}) for i, reason in enumerate(REASONS)]
    status = DeviceStatus(
        user="[/i]",
        is_running=False,
        state=OrchestratorState(threshold=0.9, asked="[/u]"),
        exits=(0,),
        validation=None,
        counters=Counters(exits=[0, 0]),
        samples={},
        labelled=0,
        events=tuple(events),
    )
    show_status(status)
    # what does not fit goes on in the next line
    shown = " ".join(capsys.readouterr().out.split())
    assert "The device of [/i] is not running" in shown
    assert all(reason in shown for reason in REASONS)


def test_the_id_of_a_user_who_is_personalised(capsys, tmp_path):
    report = PersonalisationReport(
        client_id="ann[/b][red]",
        round=1,
        status="ok",
        num_train=30,
        num_calibration=10,
        num_test=10,
        labels="all",
        rule="paper",
        threshold=0.5,
        accuracy_original=1.0,
        accuracy_before=1.0,
        accuracy_after=1.0,
        mean_macs=1.0,
        mean_macs_before=1.0,
        original_macs=2,
        seconds_personalise=0.1,
        rolled_back_exits=(),
        exit_metrics=(),
    )
    _show(report, tmp_path, "no promise")
    assert "User ann[/b][red], round 1, 10 test samples, in %" in capsys.readouterr().out


def test_the_blocks_of_a_network():
    cost = SimpleNamespace(at="stage[/b][0]", share=0.5, macs=1, params=1, head_macs=1, head_params=1)
    network = SimpleNamespace(
        input_shape=(1, 8, 8),
        num_classes=2,
        num_exits=1,
        spec=SimpleNamespace(backbone="mine:net[/b]", head="pooled"),
        costs=SimpleNamespace(exit_costs=(cost, cost)),
    )
    console = Console(file=io.StringIO(), width=100)
    console.print(exits_table(network))
    shown = console.file.getvalue()
    assert "mine:net[/b], 1x8x8 px, 2 classes, pooled heads" in shown
    assert shown.count("stage[/b][0]") == 2


def test_why_a_run_failed(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(run_progress, "Console", lambda stderr: console)
    with run_progress.shown_run() as show:
        show(RunStatus(state=FAILED, doing="runs/[/b]: no such file"))
    assert "runs/[/b]: no such file" in console.file.getvalue()


ESCAPE = "\x1b]0;you\x07\x1b[2J"


def test_names_with_escapes_do_not_reach_the_terminal(capsys):
    event = Event(seq=1, wall=0.0, kind=f"skip{ESCAPE}", reason=f"a{ESCAPE}.png is no image", details={})
    lines = DeviceLines((f"cat{ESCAPE}",), ScriptedClock(0.0), as_json=False, quiet=False)
    lines.show_event(event)
    lines.show_answer(
        Prediction(key=f"b{ESCAPE}.png", label=0, confidence=0.5, exit=0, latency_ms=1.0, explored=False, stored=True)
    )
    state = OrchestratorState(threshold=0.9, asked=ESCAPE)
    known = {"is_running": False, "exits": (0,), "validation": None, "samples": {}, "labelled": 0}
    show_status(DeviceStatus(user=f"u{ESCAPE}", state=state, counters=Counters(exits=[0, 0]), events=(event,), **known))
    doctor._show([wrong("data", f"no user {ESCAPE}", f"change {ESCAPE}")])
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said
    assert "a\ufffd]0;you" in said and "cat\ufffd" in said and "b\ufffd" in said

import json
from dataclasses import asdict, replace

import numpy as np
import psutil
import pytest
import torch
import torch.utils.benchmark
from torch import nn

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.evaluation import ExitOutputs
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.profiler import (
    MIN_TIMED_RUNS,
    WARM_UP_RUNS,
    ExitProfile,
    Profile,
    peak_memory_bytes,
    profile_exits,
)
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import to_float


class Slow(nn.Module):
    """Takes `ms` on a clock that else goes on by a microsecond a look: other work on this machine does not show."""

    now = 0.0

    @staticmethod
    def look() -> float:
        Slow.now += 1e-6
        return Slow.now

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms

    def forward(self, features):
        Slow.now += self.ms / 1000
        return features


@pytest.fixture
def hand_wound_clock(monkeypatch):
    monkeypatch.setattr(torch.utils.benchmark, "timer", Slow.look)


def row(exit: int, stage_ms: float, head_ms: float) -> ExitProfile:
    return ExitProfile(
        exit=exit,
        stage_ms=stage_ms,
        head_ms=head_ms,
        latency_ms=stage_ms + head_ms,
        latency_p95_ms=stage_ms + head_ms,
        confidence=0.5,
        accuracy=0.5,
    )


@pytest.fixture
def hand_made() -> Profile:
    return Profile(
        exits=(row(0, 1.0, 0.5), row(1, 2.0, 0.25), row(2, 4.0, 0.125), row(3, 8.0, 0.0)),
        num_samples=10,
        labelled=1.0,
        timed_runs=30,
        warm_up_runs=5,
        threads=1,
        peak_memory_bytes=1,
    )


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ((), (15.0,)),
        ((1,), (3.25, 15.25)),
        ((0, 2), (1.5, 7.625, 15.625)),
        ((0, 1, 2), (1.5, 3.75, 7.875, 15.875)),
    ],
)
def test_leaving_pays_the_stages_up_to_the_exit_and_the_kept_heads_on_the_way(hand_made, kept, expected):
    assert hand_made.leaving_ms(kept) == expected


@pytest.mark.usefixtures("hand_wound_clock")
def test_each_part_is_charged_with_its_own_time(toy_network, user):
    toy_network.stages[1] = nn.Sequential(Slow(5), toy_network.stages[1])
    toy_network.heads[0] = nn.Sequential(Slow(25), toy_network.heads[0])
    profile = profile_exits(toy_network, toy_network.heads, user.images[:8], user.labels[:8])
    assert [exit.stage_ms for exit in profile.exits] == pytest.approx([0, 5, 0], abs=0.01)
    assert [exit.head_ms for exit in profile.exits] == pytest.approx([25, 0, 0], abs=0.01)
    # the head of exit 0 is not in use when only exit 1 is
    assert [exit.latency_ms for exit in profile.exits] == pytest.approx([25, 5, 5], abs=0.01)
    assert [exit.latency_p95_ms for exit in profile.exits] == pytest.approx([25, 5, 5], abs=0.01)
    assert profile.threads == torch.get_num_threads()


def test_times_are_those_of_the_machine(toy_network, user):
    profile = profile_exits(toy_network, toy_network.heads, user.images[:8], user.labels[:8])
    assert all(0 < exit.latency_ms <= exit.latency_p95_ms for exit in profile.exits)
    assert profile.exits[-1].latency_ms > profile.exits[0].stage_ms > 0


def test_accuracy_is_against_labels_where_there_are_some_and_else_against_the_last_exit(toy_network, user):
    labels = user.labels.copy()
    labels[::3] = -1
    profile = profile_exits(toy_network, toy_network.heads, user.images[:40], labels[:40])
    with torch.inference_mode():
        outputs = ExitOutputs.of(torch.stack(toy_network(to_float(user.images[:40]))))
    reference = np.where(labels[:40] == -1, outputs.predictions[-1], labels[:40])
    assert [exit.accuracy for exit in profile.exits] == pytest.approx(outputs.accuracies(reference).tolist())
    assert [exit.confidence for exit in profile.exits] == pytest.approx(outputs.confidences.mean(axis=1), abs=1e-6)
    assert profile.labelled == pytest.approx(26 / 40)
    alone = profile_exits(toy_network, toy_network.heads, user.images[:40], torch.full((40,), -1))
    assert alone.exits[-1].accuracy == 1
    assert alone.labelled == 0


@pytest.mark.parametrize(("samples", "timed"), [(3, MIN_TIMED_RUNS), (50, 50), (120, 60)])
def test_the_number_of_timed_runs_is_bounded_from_both_sides(toy_network, user, samples, timed):
    sizes: list[int] = []
    toy_network.stages[0].register_forward_hook(lambda _m, args, _o: sizes.append(len(args[0])))
    profile = profile_exits(
        toy_network, toy_network.heads, user.images[:samples], user.labels[:samples], max_samples=60
    )
    assert sizes == [1] * (WARM_UP_RUNS + timed)
    assert (profile.num_samples, profile.timed_runs, profile.warm_up_runs) == (min(samples, 60), timed, WARM_UP_RUNS)


def test_peak_memory_is_that_of_the_process_in_bytes():
    resident = psutil.Process().memory_info().rss
    block = np.ones(64 * 2**20, dtype=np.uint8)
    assert resident / 2 < peak_memory_bytes() < psutil.virtual_memory().total
    assert peak_memory_bytes() >= psutil.Process().memory_info().rss * 0.9
    del block


@pytest.mark.usefixtures("hand_wound_clock")
def test_a_round_that_saves_latency_prunes_the_exit_whose_head_is_slow_here(toy_network, user, split, tmp_path):
    slow_head = Slow(0)
    toy_network.heads[0] = nn.Sequential(slow_head, toy_network.heads[0])
    settings = PersonalisationSettings(epochs=2, rule="paper", drop_tolerance=0.2)
    by_macs = personalise(toy_network, user, split, settings, store=ExitStore(tmp_path / "macs"))
    assert 0 in by_macs.policy.exits_in_use
    assert by_macs.profile is None
    assert not (tmp_path / "macs" / "profile.json").exists()

    slow_head.ms = 30
    store = ExitStore(tmp_path / "latency")
    by_latency = personalise(toy_network, user, split, replace(settings, cost="latency"), store=store)
    assert 0 not in by_latency.policy.exits_in_use
    assert by_latency.profile.exits[0].head_ms == pytest.approx(30, abs=0.01)
    assert by_latency.profile.num_samples == len(split.calibration)
    written = json.loads((store.folder / "profile.json").read_text())
    assert (written["round"], written["profile"]["exits"]) == (1, [asdict(row) for row in by_latency.profile.exits])


def test_an_unknown_cost_is_refused():
    with pytest.raises(ClientSettingsError, match="cost=joules is out of range: expected macs or latency"):
        PersonalisationSettings(cost="joules")

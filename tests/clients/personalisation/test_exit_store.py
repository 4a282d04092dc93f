import dataclasses
import json
import multiprocessing

import filelock
import numpy as np
import pytest
import torch

from persephonee.clients.errors import StoreError
from persephonee.clients.personalisation import exit_store
from persephonee.clients.personalisation.exit_store import ExitStore, StoredExits
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.data_partitions.known_parts import CALIBRATION, TEST, TRAIN, KnownParts


def stored(round_number: int = 1, fingerprint: str = "a" * 64, run: str = "", fill: float | None = None) -> StoredExits:
    return StoredExits(
        client_id="f0001_01",
        round=round_number,
        backbone_fingerprint=fingerprint,
        policy=ExitPolicy(threshold=0.35, exits_in_use=(0, 2), num_exits=3),
        exit_weights={"heads.0.weight": torch.full((2, 3), float(round_number if fill is None else fill))},
        run=run,
    )


def test_what_was_saved_is_loaded(tmp_path):
    store = ExitStore(tmp_path / "user")
    assert store.load("a" * 64, {}, "f0001_01") is None
    store.save(stored(1), {})
    store.save(stored(2), {})
    loaded = store.load("a" * 64, {}, "f0001_01")
    assert loaded is not None
    assert (loaded.round, loaded.policy) == (2, stored().policy)
    assert np.array_equal(loaded.exit_weights["heads.0.weight"], torch.full((2, 3), 2.0))
    assert len(list((tmp_path / "user").glob("exits-*"))) == 1


def test_a_save_that_fails_leaves_the_previous_round_in_force(tmp_path, monkeypatch):
    store = ExitStore(tmp_path)
    store.save(stored(1), {})

    def full_disk(path, value, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("persephonee.clients.personalisation.exit_store.write_with_digest", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.save(stored(2), {})
    loaded = store.load("a" * 64, {}, "f0001_01")
    assert loaded is not None and loaded.round == 1
    assert loaded.exit_weights["heads.0.weight"][0, 0] == 1


def test_a_store_of_another_model_or_user_is_refused(tmp_path):
    store = ExitStore(tmp_path)
    store.save(stored(), {})
    with pytest.raises(StoreError, match="another model"):
        store.load("b" * 64, {}, "f0001_01")
    with pytest.raises(StoreError, match="f0001_01"):
        store.load("a" * 64, {}, "f0002_02")


@pytest.mark.parametrize("damaged", ["state.json", "exits-*.safetensors"])
def test_a_damaged_store_is_named_and_not_overwritten(tmp_path, damaged):
    store = ExitStore(tmp_path)
    store.save(stored(), {})
    (path,) = tmp_path.glob(damaged)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match="damaged"):
        store.load("a" * 64, {}, "f0001_01")
    assert path.stat().st_size == 20


def test_the_parts_that_samples_had_are_remembered_and_damage_to_them_is_named(tmp_path):
    store = ExitStore(tmp_path)
    assert len(store.known_parts()) == 0
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    train, calibration, test = np.array([0, 3]), np.array([1]), np.array([2, 4, 5])
    parts = KnownParts().after(images, train, calibration, test)
    store.save(dataclasses.replace(stored(), parts=parts), {})
    drawn = np.full(6, TRAIN, dtype=np.uint8)
    for known in (store.known_parts(), store.load("a" * 64, {}, "f0001_01").parts):
        assert known.keep(images, drawn).tolist() == [TRAIN, CALIBRATION, TEST, TRAIN, TEST, TEST]
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**state, "parts": "?"}))
    with pytest.raises(StoreError, match="damaged"):
        store.known_parts()
    with pytest.raises(StoreError, match="damaged"):
        store.load("a" * 64, {}, "f0001_01")


def start_of(store, run, round_number):
    loaded = store.load("a" * 64, {}, "f0001_01", repeating=(run, round_number))
    return None if loaded is None else float(loaded.exit_weights["heads.0.weight"][0, 0])


def test_a_repeated_round_starts_from_what_it_started_from_before(tmp_path):
    store = ExitStore(tmp_path)
    assert start_of(store, "A", 1) is None
    store.save(stored(1, run="A"), {})
    assert start_of(store, "A", 1) is None
    assert start_of(store, "A", 2) == 1
    store.save(stored(2, run="A"), {})
    assert start_of(store, "A", 2) == 1
    store.save(stored(2, run="A"), {})
    assert start_of(store, "A", 2) == 1
    store.save(stored(3, run="A"), {})
    assert (start_of(store, "A", 3), start_of(store, "A", 4)) == (2, 3)
    assert len(list(tmp_path.glob("exits-*"))) == 2


def test_another_run_goes_on_from_the_exits_of_the_run_before(tmp_path):
    store = ExitStore(tmp_path)
    store.save(stored(1, run="A", fill=7), {})
    assert start_of(store, "B", 1) == 7
    store.save(stored(1, run="B", fill=8), {})
    assert (start_of(store, "B", 1), start_of(store, "B", 2)) == (7, 8)
    # a round of the device's own is never repeated: nothing is kept for it
    store.save(stored(2, fill=9), {})
    assert start_of(store, "B", 1) == 9
    assert len(list(tmp_path.glob("exits-*"))) == 1


def test_a_flipped_bit_in_the_exits_is_noticed(tmp_path):
    store = ExitStore(tmp_path)
    store.save(stored(), {})
    (path,) = tmp_path.glob("exits-*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40  # the exponent of the last number
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        store.load("a" * 64, {}, "f0001_01")


def test_another_threshold_in_the_state_is_noticed_and_a_state_without_a_digest_is_read(tmp_path):
    store = ExitStore(tmp_path)
    store.save(stored(), {})
    path = tmp_path / "state.json"
    state = json.loads(path.read_text())
    state["policy"]["threshold"] = 0.85
    path.write_text(json.dumps(state))
    with pytest.raises(StoreError, match="damaged"):
        store.load("a" * 64, {}, "f0001_01")
    del state["sha256"]
    path.write_text(json.dumps(state))
    assert store.load("a" * 64, {}, "f0001_01").policy.threshold == 0.85


def test_a_newer_store_is_called_newer_and_not_damaged(tmp_path):
    store = ExitStore(tmp_path)
    store.save(stored(), {})
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 4}))
    for read in (lambda: store.load("a" * 64, {}, "f0001_01"), store.known_parts):
        with pytest.raises(StoreError, match="a newer persephonee wrote it") as caught:
            read()
        assert "damaged" not in str(caught.value)


def test_a_store_is_only_for_its_users_eyes(tmp_path):
    ExitStore(tmp_path / "user").save(stored(), {})
    assert (tmp_path / "user").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "user").iterdir()} == {0o600}


def save_often(folder, fill):
    torch.set_num_threads(1)
    for number in range(1, 16):
        ExitStore(folder).save(stored(number, fill=fill + number / 100), {})


def test_two_who_save_at_once_leave_a_whole_store(tmp_path):
    context = multiprocessing.get_context("spawn")
    savers = [context.Process(target=save_often, args=(tmp_path, fill)) for fill in (1, 2)]
    for saver in savers:
        saver.start()
    for saver in savers:
        saver.join(60)
    assert [saver.exitcode for saver in savers] == [0, 0]
    loaded = ExitStore(tmp_path).load("a" * 64, {}, "f0001_01")
    assert float(loaded.exit_weights["heads.0.weight"][0, 0]) in (pytest.approx(1.15), pytest.approx(2.15))
    assert len(list(tmp_path.glob("exits-*"))) == 1


def test_who_comes_second_is_told_so_in_a_sentence(tmp_path, monkeypatch):
    first, second = ExitStore(tmp_path), ExitStore(tmp_path)
    assert first.load("a" * 64, {}, None) is second.load("a" * 64, {}, None) is None
    first.save(stored(1, fill=7), {})
    with pytest.raises(StoreError, match="changed by another process"):
        second.save(stored(1, fill=8), {})
    assert start_of(second, "B", 1) == 7
    monkeypatch.setattr(exit_store, "LOCK_S", 0.01)
    with (
        filelock.FileLock(tmp_path / exit_store.LOCK_NAME),
        pytest.raises(StoreError, match="another process is saving"),
    ):
        second.save(stored(2), {})


def test_what_a_kill_left_in_a_store_goes_with_the_next_save(tmp_path):
    (tmp_path / ".state.json.abcdefgh.persephonee.tmp").write_text("{")
    (tmp_path / "exits-of-mine.safetensors").write_text("precious")
    ExitStore(tmp_path).save(stored(), {})
    assert not list(tmp_path.glob(".*.tmp"))
    assert (tmp_path / "exits-of-mine.safetensors").exists()


EXITS = {"heads.0.weight": np.ones((2, 3), dtype=np.float32), "heads.0.bias": np.ones(2, dtype=np.float32)}
SHIFTS = np.ones((4, 2), dtype=np.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"exit_weights": {**EXITS, "heads.0.bias": np.full(2, np.nan, dtype=np.float32)}},
        {"shifts": SHIFTS * np.inf},
        {"shifts": SHIFTS[:3]},
        {"shifts": SHIFTS[:, :1]},
        {"shifts": SHIFTS.astype(np.float64)},
        {"exit_weights": {"heads.0.bias": EXITS["heads.0.bias"]}},
    ],
)
def test_numbers_that_no_round_leaves_are_refused_also_where_the_digest_is_right(tmp_path, change):
    store, whole = ExitStore(tmp_path), dataclasses.replace(stored(), exit_weights=EXITS, shifts=SHIFTS)
    store.save(whole, {})
    assert np.array_equal(store.load("a" * 64, {}, "f0001_01").shifts, SHIFTS)
    store.save(dataclasses.replace(whole, **change), {})
    with pytest.raises(StoreError, match="is damaged"):
        ExitStore(tmp_path).load("a" * 64, {}, "f0001_01")

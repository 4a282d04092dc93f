import dataclasses
import json

import numpy as np
import pytest
import torch

from persephonee.clients.errors import StoreError
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
    assert store.load("a" * 64, "f0001_01") is None
    store.save(stored(1))
    store.save(stored(2))
    loaded = store.load("a" * 64, "f0001_01")
    assert loaded is not None
    assert (loaded.round, loaded.policy) == (2, stored().policy)
    assert torch.equal(loaded.exit_weights["heads.0.weight"], torch.full((2, 3), 2.0))
    assert len(list((tmp_path / "user").glob("exits-*"))) == 1


def test_a_save_that_fails_leaves_the_previous_round_in_force(tmp_path, monkeypatch):
    store = ExitStore(tmp_path)
    store.save(stored(1))

    def full_disk(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("persephonee.clients.personalisation.exit_store.write_json_atomically", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.save(stored(2))
    loaded = store.load("a" * 64, "f0001_01")
    assert loaded is not None and loaded.round == 1
    assert loaded.exit_weights["heads.0.weight"][0, 0] == 1


def test_a_store_of_another_model_or_user_is_refused(tmp_path):
    store = ExitStore(tmp_path)
    store.save(stored())
    with pytest.raises(StoreError, match="another model"):
        store.load("b" * 64, "f0001_01")
    with pytest.raises(StoreError, match="f0001_01"):
        store.load("a" * 64, "f0002_02")


@pytest.mark.parametrize("damaged", ["state.json", "exits-*.safetensors"])
def test_a_damaged_store_is_named_and_not_overwritten(tmp_path, damaged):
    store = ExitStore(tmp_path)
    store.save(stored())
    (path,) = tmp_path.glob(damaged)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match="damaged"):
        store.load("a" * 64, "f0001_01")
    assert path.stat().st_size == 20


def test_the_parts_that_samples_had_are_remembered_and_damage_to_them_is_named(tmp_path):
    store = ExitStore(tmp_path)
    assert len(store.known_parts()) == 0
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    train, calibration, test = torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([2, 4, 5])
    parts = KnownParts().after(images, train, calibration, test)
    store.save(dataclasses.replace(stored(), parts=parts))
    drawn = np.full(6, TRAIN, dtype=np.uint8)
    for known in (store.known_parts(), store.load("a" * 64, "f0001_01").parts):
        assert known.keep(images, drawn).tolist() == [TRAIN, CALIBRATION, TEST, TRAIN, TEST, TEST]
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**state, "parts": "?"}))
    with pytest.raises(StoreError, match="damaged"):
        store.known_parts()
    with pytest.raises(StoreError, match="damaged"):
        store.load("a" * 64, "f0001_01")


def start_of(store, run, round_number):
    loaded = store.load("a" * 64, "f0001_01", repeating=(run, round_number))
    return None if loaded is None else float(loaded.exit_weights["heads.0.weight"][0, 0])


def test_a_repeated_round_starts_from_what_it_started_from_before(tmp_path):
    store = ExitStore(tmp_path)
    assert start_of(store, "A", 1) is None
    store.save(stored(1, run="A"))
    assert start_of(store, "A", 1) is None
    assert start_of(store, "A", 2) == 1
    store.save(stored(2, run="A"))
    assert start_of(store, "A", 2) == 1
    store.save(stored(2, run="A"))
    assert start_of(store, "A", 2) == 1
    store.save(stored(3, run="A"))
    assert (start_of(store, "A", 3), start_of(store, "A", 4)) == (2, 3)
    assert len(list(tmp_path.glob("exits-*"))) == 2


def test_another_run_goes_on_from_the_exits_of_the_run_before(tmp_path):
    store = ExitStore(tmp_path)
    store.save(stored(1, run="A", fill=7))
    assert start_of(store, "B", 1) == 7
    store.save(stored(1, run="B", fill=8))
    assert (start_of(store, "B", 1), start_of(store, "B", 2)) == (7, 8)
    # a round of the device's own is never repeated: nothing is kept for it
    store.save(stored(2, fill=9))
    assert start_of(store, "B", 1) == 9
    assert len(list(tmp_path.glob("exits-*"))) == 1

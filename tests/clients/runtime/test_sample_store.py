import hashlib
import math
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from persephonee.clients.errors import ClientSettingsError, StoreError, StoreFullError
from persephonee.clients.runtime.device_database import DeviceDatabase
from persephonee.clients.runtime.device_state import ScriptedClock
from persephonee.clients.runtime.sample_store import CALIBRATION, DAY_S, TRAIN, SampleStore
from persephonee.clients.runtime.settings import SampleStoreSettings
from persephonee.data_partitions.perceptual_hash import distances, fingerprint
from persephonee.multi_exit.losses import UNLABELLED
from tests.clients.runtime.scripted_device import leave_pages

SHAPE = (1, 16, 16)
LOOSE = {"similar_bits": -1}


def image(number: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=generator).numpy()


def opened(folder: Path | None, clock: ScriptedClock | None = None, **settings) -> tuple[DeviceDatabase, SampleStore]:
    database = DeviceDatabase(folder)
    clock = clock or ScriptedClock(1e9)
    return database, SampleStore(database, SampleStoreSettings(**settings), SHAPE, clock)


def test_samples_and_labels_come_back_after_a_restart(tmp_path):
    database, store = opened(tmp_path, **LOOSE)
    for i in range(40):
        assert store.add(image(i), f"{i}", i % 3 if i % 2 else None) == i + 1
    database.close()
    database, store = opened(tmp_path, **LOOSE)
    samples, split = store.load("me", newest=1000)
    assert sorted([*split.train.tolist(), *split.calibration.tolist()]) == list(range(40))
    assert np.array_equal(split.test, split.calibration)
    assert split.labelled.sum() == 20
    seen = {hashlib.sha256(pixels.tobytes()).digest(): int(label) for pixels, label in _pairs(samples)}
    for i in range(40):
        label = seen[hashlib.sha256(image(i).tobytes()).digest()]
        assert label == (i % 3 if i % 2 else UNLABELLED)
    database.close()


def _pairs(samples):
    return zip(samples.images, samples.labels, strict=True)


def test_a_label_may_arrive_later():
    _, store = opened(None)
    store.add(image(1), "one")
    assert store.set_label("one", 2)
    assert not store.set_label("never seen", 2)
    assert store.load("me", newest=10)[0].labels.tolist() == [2]


def test_the_part_follows_from_the_image_and_has_about_its_fraction():
    _, forwards = opened(None, **LOOSE)
    _, backwards = opened(None, **LOOSE)
    for i in range(400):
        forwards.add(image(i), f"{i}")
        backwards.add(image(399 - i), f"{399 - i}")
    # 400 draws with p = 1/4: three standard deviations are 26
    assert abs(forwards.count(CALIBRATION) - 100) < 26
    assert forwards.count(CALIBRATION) == backwards.count(CALIBRATION)
    _, split = forwards.load("me", newest=400)
    assert not set(split.train.tolist()) & set(split.calibration.tolist())


def test_near_duplicates_are_limited_and_fraction_a_part():
    _, store = opened(None, max_similar=3)
    smooth = torch.zeros(SHAPE, dtype=torch.uint8)
    smooth[0, 4:12, 6:10] = 200
    kept = 0
    for i in range(10):
        noisy = (smooth.float() + torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) * 1.5).clamp(0, 255)
        kept += store.add(noisy.to(torch.uint8).numpy(), f"{i}") is not None
    assert kept == 3
    assert 0 in (store.count(TRAIN), store.count(CALIBRATION))


def test_an_image_with_near_duplicates_in_both_parts_is_not_stored(monkeypatch):
    _, store = opened(None)
    train, calibration = (next(i for i in range(100) if _drawn_part(i) == part) for part in (TRAIN, CALIBRATION))
    # 4 bits apart, 2 from either, and 1 from one of them
    hashes = {train: 0b00000, calibration: 0b01111, 100: 0b00011, 101: 0b10000, 102: 0b11111}
    by_bytes = {image(i).tobytes(): bits for i, bits in hashes.items()}
    monkeypatch.setattr(
        "persephonee.clients.runtime.sample_store.fingerprint",
        lambda shown: np.array([by_bytes[shown.tobytes()], 0], dtype=np.uint64),
    )
    assert store.add(image(train), "train") is not None
    assert store.add(image(calibration), "calibration") is not None
    assert store.add(image(100), "between") is None
    assert (store.count(TRAIN), store.count(CALIBRATION)) == (1, 1)
    # what is near one of them joins it, in either part
    assert store.add(image(101), "near train") is not None
    assert (store.count(TRAIN), store.count(CALIBRATION)) == (2, 1)
    assert store.add(image(102), "near calibration") is not None
    assert (store.count(TRAIN), store.count(CALIBRATION)) == (2, 2)


def _drawn_part(number: int) -> str:
    _, alone = opened(None)
    alone.add(image(number), "alone")
    return TRAIN if alone.count(TRAIN) else CALIBRATION


def test_the_hash_is_near_for_noise_and_far_for_another_picture():
    picture = torch.zeros(SHAPE, dtype=torch.uint8)
    picture[0, 3:13, 7:9] = 220
    noisy = (picture.float() + torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    turned = picture.transpose(1, 2)
    near = distances(fingerprint(picture.numpy()), fingerprint(noisy.to(torch.uint8).numpy())[None])
    far = distances(fingerprint(picture.numpy()), fingerprint(turned.numpy())[None])
    assert near[0] <= 2 < far[0]


def test_a_key_is_stored_once():
    _, store = opened(None, **LOOSE)
    assert store.add(image(1), "one") == 1
    assert store.add(image(2), "one") is None


def test_the_oldest_of_a_part_go_when_its_bytes_are_used_up():
    # 256 bytes an image: room for 30 training and 10 calibration samples
    _, store = opened(None, max_bytes=40 * 256, **LOOSE)
    part_of = {}
    for i in range(300):
        before = store.count(TRAIN)
        store.add(image(i), f"{i}")
        part_of[f"{i}"] = TRAIN if store.count(TRAIN) != before or (before == 30 and f"{i}" in _train(store)) else ""
    assert store.count(TRAIN) == 30
    assert store.count(CALIBRATION) == 10
    train_keys = [key for key in map(str, range(300)) if part_of[key] == TRAIN]
    assert _train(store) == train_keys[-30:]


def _train(store: SampleStore) -> list[str]:
    rows = store._database.execute("SELECT key FROM samples WHERE part = 'train' ORDER BY seq").fetchall()
    return [row[0] for row in rows]


def test_old_samples_go_after_their_age_of_running_time():
    clock = ScriptedClock(1e9)
    _, store = opened(None, clock, max_age_days=30.0, **LOOSE)
    store.add(image(0), "old")
    for day in range(1, 32):
        clock.now = 1e9 + day * DAY_S
        store.add(image(day), f"{day}")
    assert store.keys() == [f"{day}" for day in range(1, 32)]


def test_a_clock_that_jumps_deletes_and_refuses_nothing():
    clock = ScriptedClock(0.0)
    _, store = opened(None, clock, max_age_days=90.0, **LOOSE)
    store.add(image(0), "in 1970")
    clock.now = 1.8e9
    store.add(image(1), "after the network came")
    clock.now = 0.0
    assert store.add(image(2), "in 1970 again") is not None
    assert store.keys() == ["in 1970", "after the network came", "in 1970 again"]


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    database, store = opened(tmp_path, **LOOSE)
    for i in range(20):
        store.add(image(i), f"{i}")
    leave_pages(database, 0)
    stored = []
    with pytest.raises(StoreFullError, match=r"full or fails .*make room; nothing that was stored is lost"):
        for i in range(20, 200):
            store.add(image(i), f"{i}")
            stored.append(f"{i}")
    leave_pages(database, 1000)
    # after room was made the device goes on, and the sample that failed can be stored
    assert store.add(image(999), "later") is not None
    database.close()
    database, store = opened(tmp_path, **LOOSE)
    assert store.keys() == [*(f"{i}" for i in range(20)), *stored, "later"]
    database.close()


def test_a_pipe_in_place_of_the_database_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "device.sqlite")
    with pytest.raises(StoreError, match="is no regular file"):
        DeviceDatabase(tmp_path)


def test_a_file_of_version_1_is_read_and_has_digests_from_then_on(tmp_path):
    database, store = opened(tmp_path)
    store.add(image(1), "one", label=2)
    database.close()
    older = sqlite3.connect(tmp_path / "device.sqlite")
    for (trigger,) in older.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        older.execute(f"DROP TRIGGER {trigger}")
    older.executescript("DROP TABLE digests; PRAGMA user_version = 1;")
    older.close()
    database, store = opened(tmp_path)
    assert store.keys() == ["one"]
    assert store.set_label("one", 3) and store.add(image(2), "two") is not None
    database.close()
    damage = sqlite3.connect(tmp_path / "device.sqlite")
    damage.execute("DROP TRIGGER samples_update")
    damage.execute("UPDATE samples SET label = 1 WHERE key = 'one'")
    damage.commit()
    damage.close()
    with pytest.raises(StoreError, match="damaged"):
        DeviceDatabase(tmp_path)


def test_nothing_of_a_transaction_that_fails_is_remembered():
    database, store = opened(None, max_similar=1)
    with pytest.raises(RuntimeError), database.transaction():
        store.add(image(1), "one")
        raise RuntimeError
    assert store.keys() == []
    # the near-duplicates' cache forgot it as well
    assert store.add(image(1), "one") is not None


def test_a_store_of_another_version_or_a_damaged_one_is_refused_in_a_sentence(tmp_path):
    database, _ = opened(tmp_path)
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(StoreError, match="version 9, expected 2"):
        DeviceDatabase(tmp_path)
    other = tmp_path / "damaged"
    other.mkdir()
    (other / "device.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(StoreError, match="cannot be used"):
        DeviceDatabase(other)


def test_one_process_writes_to_a_store(tmp_path):
    database, _ = opened(tmp_path)
    with pytest.raises(StoreError, match="another process runs a device"):
        DeviceDatabase(tmp_path)
    DeviceDatabase(tmp_path, exclusive=False).close()
    database.close()
    DeviceDatabase(tmp_path).close()


def test_a_store_belongs_to_one_model_and_one_user(tmp_path):
    database, _ = opened(tmp_path)
    database.require({"user": "me", "model": "a" * 64})
    database.require({"user": "me", "model": "a" * 64})
    with pytest.raises(StoreError, match=r"was made with model a{12}\.{3}, not bbbbbbbbbbbb"):
        database.require({"user": "me", "model": "b" * 64})
    database.close()


def test_bounds_without_an_end_are_none():
    _, store = opened(None, max_bytes=2**63 - 1, max_age_days=math.inf, **LOOSE)
    for i in range(3):
        store.add(image(i), f"{i}")
    assert store.keys() == ["0", "1", "2"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bytes": 0},
        {"max_bytes": 2**63},
        {"max_age_days": 0.0},
        {"max_age_days": math.nan},
        {"calibration_fraction": 1.0},
        {"max_similar": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ClientSettingsError, match=next(iter(wrong))):
        SampleStoreSettings(**wrong)

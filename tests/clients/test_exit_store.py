import pytest
import torch

from clients.errors import StoreError
from clients.exit_store import ExitStore, StoredExits
from clients.policy import ExitPolicy


def stored(round_number: int = 1, fingerprint: str = "a" * 64) -> StoredExits:
    return StoredExits(
        client_id="f0001_01",
        round=round_number,
        backbone_fingerprint=fingerprint,
        policy=ExitPolicy(threshold=0.35, exits=(0, 2), num_exits=3),
        exits={"heads.0.weight": torch.full((2, 3), float(round_number))},
    )


def test_what_was_saved_is_loaded(tmp_path):
    store = ExitStore(tmp_path / "user")
    assert store.load("a" * 64, "f0001_01") is None
    store.save(stored(1))
    store.save(stored(2))
    loaded = store.load("a" * 64, "f0001_01")
    assert loaded is not None
    assert (loaded.round, loaded.policy) == (2, stored().policy)
    assert torch.equal(loaded.exits["heads.0.weight"], torch.full((2, 3), 2.0))
    assert len(list((tmp_path / "user").glob("exits-*"))) == 1


def test_a_save_that_fails_leaves_the_previous_round_in_force(tmp_path, monkeypatch):
    store = ExitStore(tmp_path)
    store.save(stored(1))

    def full_disk(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clients.exit_store.write_json_atomically", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.save(stored(2))
    loaded = store.load("a" * 64, "f0001_01")
    assert loaded is not None and loaded.round == 1
    assert loaded.exits["heads.0.weight"][0, 0] == 1


def test_a_store_of_another_model_or_user_is_refused(tmp_path):
    store = ExitStore(tmp_path)
    store.save(stored())
    with pytest.raises(StoreError, match="another model"):
        store.load("b" * 64, "f0001_01")
    with pytest.raises(StoreError, match="f0001_01"):
        store.load("a" * 64, "f0002_02")


@pytest.mark.parametrize("damaged", ["state.json", "exits-000001.safetensors"])
def test_a_damaged_store_is_named_and_not_overwritten(tmp_path, damaged):
    store = ExitStore(tmp_path)
    store.save(stored())
    path = tmp_path / damaged
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match="damaged"):
        store.load("a" * 64, "f0001_01")
    assert path.stat().st_size == 20

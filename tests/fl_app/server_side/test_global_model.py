"""The model that a run begins with: named, found, or pretrained by one run at a time."""

import threading
import time

from persephonee.fl_app.server_side import global_model, held_out_pools
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.server.training.global_model import MODEL_NAME


def test_two_runs_that_need_the_same_model_pretrain_it_once(tmp_path, monkeypatch):
    made, folder = [], tmp_path / "models" / "one"

    def make(settings, partitions, into, **options):
        made.append(into)
        time.sleep(0.2)
        into.mkdir(parents=True, exist_ok=True)
        (into / MODEL_NAME).touch()

    monkeypatch.setattr(global_model, "make_global_model", make)
    monkeypatch.setattr(global_model, "open_partitions", lambda *args, **options: None)
    monkeypatch.setattr(held_out_pools, "calibrate_model", lambda *args, **options: None)
    monkeypatch.setattr(held_out_pools, "check_held_out_users", lambda *args: None)
    threads = [threading.Thread(target=global_model.obtain_model, args=(AppSettings(), folder)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert made == [folder]

"""The remaining time follows from what is done."""

from persephonee.fl_app.server_side import remaining_time


def test_what_is_left_follows_from_what_is_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(remaining_time.time, "monotonic", lambda: now[0])
    estimate = remaining_time.RemainingTime()
    now[0] = 20.0
    assert estimate.words(1, 4) == "1 of 4 users, about 60 s more"
    assert estimate.words(2, 20) == "2 of 20 users, about 3 min more"

import torch

from persephonee.clients.personalisation.features import compute_features
from persephonee.data_partitions.samples import to_float


def test_cached_features_are_what_the_heads_would_see(toy_network, user):
    cache = compute_features(toy_network.freeze_backbone(), user.images)
    with torch.no_grad():
        expected = toy_network(to_float(user.images))
        got = [head(maps) for head, maps in zip(toy_network.heads, cache.maps, strict=True)]
    for ours, theirs in zip([*got, cache.last_logits], expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_batch_size_does_not_matter_to_the_cache(toy_network, user, monkeypatch):
    whole = compute_features(toy_network, user.images)
    monkeypatch.setattr("persephonee.clients.personalisation.feature_cache.BATCH_SIZE", 7)
    pieces = compute_features(toy_network, user.images)
    for ours, theirs in zip(pieces.maps, whole.maps, strict=True):
        torch.testing.assert_close(ours, theirs)

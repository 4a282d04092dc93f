import torch
from torch import nn

from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.training.exit_training import train_exits
from persephonee.clients.personalisation.training.proximal import add_proximal_gradient


def test_the_gradient_is_that_of_the_term_written_out():
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(3, 2)
    anchor = [torch.randn(p.shape, generator=generator) for p in head.parameters()]
    inputs = torch.randn(5, 3, generator=generator)
    written_out = head(inputs).square().sum() + 0.35 * sum(
        (p - a).square().sum() for p, a in zip(head.parameters(), anchor, strict=True)
    )
    expected = torch.autograd.grad(written_out, list(head.parameters()))
    head(inputs).square().sum().backward()
    add_proximal_gradient(head, anchor, mu=0.7)
    for parameter, gradient in zip(head.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_larger_mu_keeps_the_exits_nearer_to_the_global_ones(toy_network, user, split):
    import copy

    features = compute_features(toy_network.freeze_backbone(), user.images)

    def distance(mu):
        heads = copy.deepcopy(toy_network.heads).requires_grad_(True)
        settings = PersonalisationSettings(epochs=2, proximal_mu=mu)
        generator = torch.Generator().manual_seed(1)
        train_exits(
            heads,
            features,
            torch.from_numpy(user.labels),
            torch.from_numpy(split.train),
            settings,
            generator,
            anchor=toy_network.heads,
        )
        pairs = zip(heads.parameters(), toy_network.heads.parameters(), strict=True)
        return sum(float((p - q).detach().square().sum()) for p, q in pairs)

    far, near, nearest = (distance(mu) for mu in (0.0, 1.0, 10.0))
    assert far > near > nearest

"""Exit training of many users at once: the paper's schedule one batched product where each user had its own.

An exit of U users is one head whose parameters have a leading U. Convolutions become products of unfolded maps,
BatchNorm takes the statistics of each user's own samples, and padding takes part in nothing. The numbers are those of
`train_exits`, one user after the other, within the rounding of float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.training.exit_training import batches
from persephonee.clients.personalisation.training.linear_fit import loss_trends
from persephonee.multi_exit.heads import MSDNetHead, PooledHead


@dataclass(frozen=True, eq=False)
class ExitOfUser:
    """What trains one exit of one user.

    Attributes:
        head: trained in place.
        maps: what the head takes of the user's N samples, shape [N, C, H, W].
        last_logits: shape [N, K].
        labels: int64, shape [N], -1 for unlabelled.
        orders: the training samples in the order of each epoch.
        anchor: what settings.proximal_mu pulls towards.
    """

    head: nn.Module
    maps: Tensor
    last_logits: Tensor
    labels: Tensor
    orders: list[Tensor]
    anchor: nn.Module


def train_exit_of_users(users: Sequence[ExitOfUser], settings: PersonalisationSettings) -> None:
    """Train the same exit of all users in place."""
    steps = [[batch for order in user.orders for batch in batches(order, settings.batch_size)] for user in users]
    # those who take the most steps come first, so that those who still train are the first few
    order = sorted(range(len(users)), key=lambda u: -len(steps[u]))
    users, steps = [users[u] for u in order], [steps[u] for u in order]
    state = _stacked([user.head for user in users])
    names = [name for name, _ in users[0].head.named_parameters()]
    anchors = _stacked([user.anchor for user in users]) if settings.proximal_mu else {}
    momenta = {name: torch.zeros_like(state[name]) for name in names}
    for step in range(len(steps[0])):
        active = sum(step < len(chosen) for chosen in steps)
        _train_step(users[:active], [chosen[step] for chosen in steps[:active]], state, anchors, momenta, settings)
    for u, user in enumerate(users):
        user.head.load_state_dict({name: tensor[u] for name, tensor in state.items()})
        user.head.eval()


def _train_step(
    users: Sequence[ExitOfUser],
    chosen: list[Tensor],
    state: dict[str, Tensor],
    anchors: dict[str, Tensor],
    momenta: dict[str, Tensor],
    settings: PersonalisationSettings,
) -> None:
    def gathered(tensors: list[Tensor], value: float = 0) -> Tensor:
        rows = [tensor[batch] for tensor, batch in zip(tensors, chosen, strict=True)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    active = len(users)
    maps = gathered([user.maps for user in users])
    labels = gathered([user.labels for user in users], -1)
    last_logits = gathered([user.last_logits for user in users])
    counts = torch.tensor([len(batch) for batch in chosen], device=maps.device)
    real = torch.arange(maps.shape[1], device=maps.device) < counts[:, None]
    # slices share their memory with the whole, so that what is changed below is the state itself
    current = {name: tensor[:active].detach() for name, tensor in state.items()}
    for name in momenta:
        current[name].requires_grad_()
    # without samples that are real, BatchNorm keeps the statistics that it has
    counted = real if settings.head_statistics == "batch" else None
    logits = _run(users[0].head, current, maps, counted)
    trends = loss_trends(torch, logits.detach(), last_logits, labels, settings.weights)
    logits.backward(trends * (real / counts[:, None])[:, :, None])
    with torch.no_grad():
        gradients = _clipped({name: current[name].grad for name in momenta}, settings.max_gradient_norm)
        for name, momentum in momenta.items():
            parameter, gradient = current[name], gradients[name]
            if settings.proximal_mu:
                gradient = gradient + settings.proximal_mu * (parameter - anchors[name][:active])
            momentum[:active].mul_(settings.momentum).add_(gradient)
            parameter.sub_(momentum[:active], alpha=settings.learning_rate)


def _clipped(gradients: Mapping[str, Tensor | None], most: float) -> dict[str, Tensor]:
    """Return the gradients, each [U, ...], scaled down for each user as `clip_grad_norm_` does for one."""
    found = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    squares = torch.stack([gradient.reshape(len(gradient), -1).square().sum(dim=1) for gradient in found.values()])
    scale = (most / (squares.sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
    return {name: gradient * scale.reshape(-1, *[1] * (gradient.ndim - 1)) for name, gradient in found.items()}


def _stacked(heads: Sequence[nn.Module]) -> dict[str, Tensor]:
    states = [head.state_dict() for head in heads]
    return {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}


def _run(head: nn.Module, state: dict[str, Tensor], maps: Tensor, real: Tensor | None) -> Tensor:
    """Return the logits [U, B, K] of maps [U, B, C, H, W].

    BatchNorm takes the statistics of the samples that are `real`, [U, B], and updates those in `state`; None takes
    those in `state`, which then stay.
    """
    if isinstance(head, PooledHead):
        flat = maps.flatten(0, 1)
        blend = torch.sigmoid(state["blend"])[:, None, None]
        largest, mean = (pool(flat).flatten(1).unflatten(0, maps.shape[:2]) for pool in (head.maximum, head.average))
        pooled = blend * largest + (1 - blend) * mean
        return _product(pooled, state, "classifier")
    if not isinstance(head, MSDNetHead):
        raise TypeError(f"{type(head).__name__} has no batched form: train its users one by one.")
    for name, layer in head.named_children():
        if isinstance(layer, nn.Conv2d):
            maps = _convolve(maps, state[f"{name}.weight"], layer)
        elif isinstance(layer, nn.BatchNorm2d):
            maps = _normalise(maps, state, name, layer, real)
        elif isinstance(layer, nn.ReLU):
            maps = functional.relu(maps)
        elif isinstance(layer, nn.Linear):
            return _product(maps.mean(dim=(3, 4)), state, name)
    raise TypeError("the head ends without a linear layer.")


def _product(rows: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return torch.baddbmm(state[f"{name}.bias"][:, None], rows, state[f"{name}.weight"].transpose(1, 2))


def _convolve(maps: Tensor, weight: Tensor, layer: nn.Conv2d) -> Tensor:
    # heads have square kernels, strides and paddings of one number, not of a word
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    users, size = maps.shape[:2]
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in maps.shape[3:])
    patches = functional.unfold(maps.flatten(0, 1), kernel, padding=padding, stride=stride)
    rows = patches.unflatten(0, (users, size)).transpose(2, 3).flatten(1, 2)
    found = torch.bmm(rows, weight.flatten(2).transpose(1, 2))
    return found.view(users, size, height, width, -1).permute(0, 1, 4, 2, 3)


def _normalise(maps: Tensor, state: dict[str, Tensor], name: str, layer: nn.BatchNorm2d, real: Tensor | None) -> Tensor:
    if real is None:
        scale = state[f"{name}.weight"] * torch.rsqrt(state[f"{name}.running_var"] + layer.eps)
        shift = state[f"{name}.bias"] - scale * state[f"{name}.running_mean"]
        return maps * scale[:, None, :, None, None] + shift[:, None, :, None, None]
    mask = real[:, :, None, None, None].to(maps.dtype)
    count = mask.sum(dim=(1, 3, 4)) * maps.shape[3] * maps.shape[4]
    mean = (maps * mask).sum(dim=(1, 3, 4)) / count
    centred = maps - mean[:, None, :, None, None]
    variance = (centred.square() * mask).sum(dim=(1, 3, 4)) / count
    with torch.no_grad():
        share = 0.1 if layer.momentum is None else layer.momentum
        state[f"{name}.running_mean"].lerp_(mean, share)
        state[f"{name}.running_var"].lerp_(variance * count / (count - 1), share)
        state[f"{name}.num_batches_tracked"] += 1
    scale = state[f"{name}.weight"] * torch.rsqrt(variance + layer.eps)
    return centred * scale[:, None, :, None, None] + state[f"{name}.bias"][:, None, :, None, None]

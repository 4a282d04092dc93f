"""The options of `persephonee simulate` that concern shared exits, and the settings that they make."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings

SHARING = "Sharing"
PRIVACY = "Privacy of shared exits"


def sharing_settings(
    *,
    share_exits: Annotated[
        bool, typer.Option("--share-exits", help="Ask users for their exits, and merge them.", rich_help_panel=SHARING)
    ] = False,
    sharing_fraction: Annotated[
        float, typer.Option(help="Fraction of the users who permit it, in [0, 1].", rich_help_panel=SHARING)
    ] = 1.0,
    share_dtype: Annotated[
        str, typer.Option(help="Of the exits on their way: float32 or float16.", rich_help_panel=SHARING)
    ] = "float32",
    strategy: Annotated[
        str,
        typer.Option(
            help="What merges them: fedavg, fedadam, fedyogi, fedmedian, fedtrimmedavg or krum.",
            rich_help_panel=SHARING,
        ),
    ] = "fedavg",
    server_learning_rate: Annotated[
        float, typer.Option(help="fedadam, fedyogi: the step, above 0.", rich_help_panel=SHARING)
    ] = 0.01,
    trimmed_fraction: Annotated[
        float, typer.Option(help="fedtrimmedavg: share cut off at either end, in [0, 0.5).", rich_help_panel=SHARING)
    ] = 0.2,
    malicious_clients: Annotated[
        int, typer.Option(help="krum: how many may lie, f; 2 f + 3 must share.", rich_help_panel=SHARING)
    ] = 0,
    min_sharers: Annotated[
        int, typer.Option(help="An exit that fewer users sent is not merged.", rich_help_panel=SHARING)
    ] = 2,
) -> "SharingSettings":
    """Make the settings of sharing."""
    from persephonee.fl_app.settings.sharing_settings import SharingSettings

    return SharingSettings(
        share_exits=share_exits,
        sharing_fraction=sharing_fraction,
        share_dtype=share_dtype,
        strategy=strategy,
        server_learning_rate=server_learning_rate,
        trimmed_fraction=trimmed_fraction,
        malicious_clients=malicious_clients,
        min_sharers=min_sharers,
    )


def privacy_settings(
    *,
    dp_noise_multiplier: Annotated[
        float, typer.Option(help="Noise over the clipping norm; 0 is none.", rich_help_panel=PRIVACY)
    ] = 0.0,
    dp_clipping_norm: Annotated[
        float, typer.Option(help="L2 norm of a user's change to all exits.", rich_help_panel=PRIVACY)
    ] = 1.0,
    dp_delta: Annotated[float, typer.Option(help="delta at which epsilon is stated.", rich_help_panel=PRIVACY)] = 1e-5,
    dp_noise_at: Annotated[
        str, typer.Option(help="Who adds the noise: server, or clients.", rich_help_panel=PRIVACY)
    ] = "server",
) -> "PrivacySettings":
    """Make the settings of the noise."""
    from persephonee.fl_app.settings.sharing_settings import PrivacySettings

    return PrivacySettings(
        dp_noise_multiplier=dp_noise_multiplier,
        dp_clipping_norm=dp_clipping_norm,
        dp_delta=dp_delta,
        dp_noise_at=dp_noise_at,
    )

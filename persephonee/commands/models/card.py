"""The card of a model, as the verbs that make models write it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persephonee.multi_exit.network import MultiExitNetwork

log = logging.getLogger("persephonee.card")


def write_card_if_possible(network: "MultiExitNetwork", out: Path) -> None:
    """Write README.md beside a model's weights; a model serves without one too."""
    from persephonee.multi_exit.repository.model_card import write_card

    try:
        write_card(network, out)
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        log.warning('The model gets no card, which needs: pip install "persephonee[hub]".')

"""What a device remembers of what it was asked: its own seed, the model that it answers for, and how often it answered.

Every figure that a server gets tells it a little, and a server that may choose what is measured, on which division of
the samples and how often, puts the little together. So the seed is the device's own, a device that shares no exits
answers for one model, and the number of answers is limited. All of it is in `asked.json` in the device's store.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from persephonee.clients.errors import StoreError
from persephonee.fl_app.errors import WireError
from persephonee.multi_exit.checked_json import read_with_digest, write_with_digest

ASKED_NAME = "asked.json"
ANSWERS_PER_ROUND = 3
"""To train or to evaluate in the same round of the same run: a server that was killed asks again."""

ANSWERS_PER_DAY = 200
_DAY_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The contents of asked.json."""

    seed: int = field(default_factory=lambda: secrets.randbelow(2**63))
    """Divides this device's samples and orders its training, whatever a server's seed is."""
    model: str = ""
    """Fingerprint of the model that a device answers for that shares no exits; empty before the first."""
    graphs: Mapping[str, str] = field(default_factory=dict)
    """Of a device that runs on graphs and shares no exits: the fingerprint of the graphs, by their model's."""
    day: int = 0
    """Days since 1970, UTC, that the counts are of."""
    answers: Mapping[str, int] = field(default_factory=dict)
    """Of this day, by run, round and what was asked."""


class AskedFile:
    """The memory of one device.

    Args:
        store: the device's store.
        models: fingerprints of models, or of their graphs, that the owner allows; empty allows the first model that the
            device is sent. Of a model that is named by its own fingerprint, the first graphs stay the only ones.
        any_model: the device takes exits in that others made, so that any model will do.
        clock: seconds since 1970.
    """

    def __init__(
        self, store: Path, models: tuple[str, ...], any_model: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = store / ASKED_NAME
        self._models, self._any_model, self._clock = models, any_model, clock

    def admit(self, kind: str, run: str, round_number: int, model: str, graphs: str = "") -> int:
        """Count an answer that is about to be given, and return the device's own seed.

        Args:
            kind: of the message.
            run: that asks.
            round_number: of it.
            model: its fingerprint.
            graphs: fingerprint of the graphs that the device runs on; empty on PyTorch.

        Raises:
            WireError: the model or its graphs are others than the device answers for, or it was asked too often.
            StoreError: what the device remembers is damaged.
        """
        asked = self._read()
        known = dict(asked.graphs)
        if not self._any_model:
            self._require_own(asked, model, graphs)
            if graphs:
                known[model] = graphs
        today = int(self._clock() // _DAY_SECONDS)
        answers = dict(asked.answers) if asked.day == today else {}
        key = f"{kind}/{run}/{round_number}"
        answers[key] = answers.get(key, 0) + 1
        if answers[key] > ANSWERS_PER_ROUND:
            raise WireError(f"this device has answered this {ANSWERS_PER_ROUND} times, which is the most.")
        if sum(answers.values()) > ANSWERS_PER_DAY:
            raise WireError(f"this device has answered {ANSWERS_PER_DAY} times today, which is the most.")
        own = asked.model or ("" if self._any_model else model)
        changed = replace(asked, model=own, graphs=known, day=today, answers=answers)
        write_with_digest(self._path, asdict(changed), private=True)
        return changed.seed

    def _require_own(self, asked: Asked, model: str, graphs: str) -> None:
        allowed = self._models or ((asked.model,) if asked.model else (model,))
        if graphs and graphs in self._models:
            return
        if model not in allowed:
            raise WireError(
                f"this device answers for the model {allowed[0][:12]}, not for {model[:12]}; ask its owner."
            )
        # weights do not say what graphs compute
        first = asked.graphs.get(model, graphs)
        if graphs and graphs != first:
            raise WireError(
                f"this device answers for the graphs {first[:12]} of this model, not for {graphs[:12]}; ask its owner."
            )

    def _read(self) -> Asked:
        try:
            asked = Asked(**read_with_digest(self._path))
            if not isinstance(asked.seed, int) or not all(type(n) is int for n in asked.answers.values()):
                raise ValueError("a number is missing")
            if not all(isinstance(name, str) for name in asked.graphs.values()):
                raise ValueError("the graphs have no fingerprint")
        except FileNotFoundError:
            return Asked()
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(
                f"{self._path} is damaged ({error}): remove it if the device's samples may be divided anew."
            ) from None
        return asked

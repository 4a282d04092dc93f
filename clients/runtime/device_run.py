"""`persephonee device run`: feed a device until the frames end or somebody stops it."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from persephonee.clients.errors import ImageError
from persephonee.clients.runtime.device import Device
from persephonee.clients.runtime.device_settings import Frame, Prediction
from persephonee.clients.runtime.frames import Item, LateLabel, NoFrame
from persephonee.clients.runtime.phases import Phase

IDLE_S = 0.5
"""How often a watched folder is looked at."""


class StopRequested(BaseException):
    """SIGTERM, SIGINT or SIGHUP came in a round, which may take minutes: it is broken off, as a kill would."""


class Stop:
    """Whether somebody asked the device to stop, and by which signal."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.signal_name = ""
        self.breaks_round_off = False
        """Whether `StopRequested` was raised: once is enough."""

    def ask(self, signal_name: str) -> None:
        """Ask for a stop."""
        self.signal_name = signal_name
        self._asked.set()

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until somebody asks."""
        self._asked.wait(seconds)


@contextmanager
def stopped_by_signals(stop: Stop, device: Device) -> Iterator[None]:
    """Let SIGTERM, SIGINT and SIGHUP stop the device: between two frames, or in the middle of a round."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.ask(signal.Signals(number).name)
        # not again while the device notes why it stops: the phase is still that of the round
        if device.orchestrator.state.phase is Phase.PERSONALISATION and not stop.breaks_round_off:
            stop.breaks_round_off = True
            raise StopRequested

    earlier = {number: signal.signal(number, handle) for number in _stopping_signals()}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _stopping_signals() -> tuple[signal.Signals, ...]:
    # nohup lets a program outlive its terminal: that stays so
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGTERM, signal.SIGINT, *hangup)


def run_device(device: Device, items: Iterable[Item], show: Callable[[Prediction], None], stop: Stop) -> None:
    """Answer what comes, store labels, and personalise when it is due, until the items end or a stop is asked for.

    Args:
        device: a device that has been started.
        items: the frames and labels of a `WatchedFolder` or a `ReplayedUser`; None means that there is none at present.
        show: called with every prediction, after its sample has been stored.
        stop: checked between items.
    """
    try:
        for item in items:
            if stop.is_asked:
                break
            _take(device, item, show)
            if not stop.is_asked:
                device.personalise_if_due()
            if item is None:
                stop.wait(IDLE_S)
    except StopRequested:
        device.stop(f"{stop.signal_name} in a round: the exits before it are in force")
        return
    reason = f"{stop.signal_name} came between two frames" if stop.is_asked else "there are no more frames"
    device.stop(reason)


def _take(device: Device, item: Item, show: Callable[[Prediction], None]) -> None:
    match item:
        case Frame():
            try:
                show(device.answer(item))
            except ImageError as error:
                device.skip(item.key, str(error))
        case NoFrame():
            # a labels file is read again at every start, and so are its rows that name no class
            seen_as = item.seen_as or item.key
            if not device.has_answered(seen_as):
                device.skip(item.key, item.reason, seen_as)
        case LateLabel():
            device.set_label(item.key, item.label)
        case None:
            pass

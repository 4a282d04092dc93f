"""What a person sees of a pretraining: a progress bar on a terminal, one log line per epoch elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from persephonee.server.training.pretraining_checkpoint import EpochRecord
from persephonee.server.training.remaining_time import RemainingTime

logger = logging.getLogger(__name__)

SECONDS_BEFORE_ESTIMATE = 5.0


class PretrainProgress:
    """Told by the pretraining how far it is; this one keeps silent."""

    def users_loaded(self, done: int, total: int) -> None:
        """`done` of `total` users have been read."""

    def epoch_started(self, epoch: int, epochs: int, batches: int) -> None:
        """Epoch `epoch` of at most `epochs`, counted from 1, takes `batches` batches."""

    def batch_done(self, loss: float) -> None:
        """One more batch was trained on; `loss` in nats."""

    def epoch_done(self, record: EpochRecord) -> None:
        """The epoch ended, validation included."""


class Estimate:
    """How long a pretraining takes at most, known once some batches are done."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._todo = self._done = 0
        self._is_said = False

    def start(self, batches: int) -> None:
        """Begin to count, at the start of an epoch; `batches` are left in all."""
        self._begun, self._todo, self._done = time.perf_counter(), batches, 0

    def batch_done(self) -> str | None:
        """Count a batch; return the sentence where it is time for it, once."""
        self._done += 1
        if self._done == 1:
            # a GPU loads its programs in the first batch, which may take longer than the next hundred
            self._begun = time.perf_counter()
        seconds = time.perf_counter() - self._begun
        if self._is_said or seconds < SECONDS_BEFORE_ESTIMATE:
            return None
        self._is_said = True
        minutes = seconds / (self._done - 1) * max(self._todo - self._done, 0) / 60
        return f"the training takes about {max(minutes, 1):.0f} min more at most, and validation beside it"


class LogProgress(PretrainProgress):
    """One log line per epoch, and one that says how long it will take."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._estimate = Estimate()
        self._reading = RemainingTime()

    def users_loaded(self, done: int, total: int) -> None:
        """Log the number of users once they are read, and on the way where that takes long."""
        self._reading.log_sometimes(logger, done, total, "reading")
        if done == total:
            logger.info("read %d users in %.0f s", total, time.perf_counter() - self._started)

    def epoch_started(self, epoch: int, epochs: int, batches: int) -> None:
        """Start the epoch's clock."""
        self._started = time.perf_counter()
        self._estimate.start(batches * (epochs - epoch + 1))

    def batch_done(self, loss: float) -> None:
        """Say how long it will take, once that is known."""
        sentence = self._estimate.batch_done()
        if sentence:
            logger.info(sentence)

    def epoch_done(self, record: EpochRecord) -> None:
        """Write the line."""
        logger.info("%s, %.0f s", describe(record), time.perf_counter() - self._started)


class BarProgress(PretrainProgress):
    """A bar for the epoch under way, and a line above it for each one that is done."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("reading users", total=None, loss="")
        self._loss = 0.0
        self._estimate = Estimate()

    def users_loaded(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total, description="reading users")

    def epoch_started(self, epoch: int, epochs: int, batches: int) -> None:
        """Reset the bar."""
        self._bar.reset(self._task, total=batches, description=f"epoch {epoch}/{epochs}")
        self._estimate.start(batches * (epochs - epoch + 1))

    def batch_done(self, loss: float) -> None:
        """Move the bar; the loss shown is a running mean."""
        self._loss = 0.95 * self._loss + 0.05 * loss if self._loss else loss
        self._bar.update(self._task, advance=1, loss=f"loss {self._loss:.3f}")
        sentence = self._estimate.batch_done()
        if sentence:
            self._bar.console.print(sentence, highlight=False)

    def epoch_done(self, record: EpochRecord) -> None:
        """Write the line above the bar."""
        self._bar.console.print(describe(record), highlight=False)


def describe(record: EpochRecord) -> str:
    """Return one line for a person."""
    accuracies = " ".join(f"{accuracy:.3f}" for accuracy in record.validation_accuracy)
    when = f"epoch {record.epoch}: loss {record.train_loss:.3f}" if record.epoch else "at the start"
    return f"{when}, accuracy on held-out users per exit {accuracies}"


@contextmanager
def shown_progress() -> Iterator[PretrainProgress]:
    """Yield a progress bar where stderr is a terminal, log lines where it is not."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LogProgress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console) as bar:
        yield BarProgress(bar)

"""The other side of the kill test: a process that starts devices in children, which the test kills.

Run as `python -m tests.clients.runtime.killed_device MODEL`. For each line `STORE LIFE LAST` on stdin a child lives
on STORE, and says on stdout what it has acknowledged; with LAST it lives until its round is done and ends by itself.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from persephonee.multi_exit.storage import load_network
from tests.clients.runtime.scripted_device import SETTINGS, Life, start
from tests.tiny_cnn import SOURCE

NEW_SAMPLES = 6
FRAMES = 16
LIVED = replace(
    SETTINGS,
    orchestrator=replace(
        SETTINGS.orchestrator,
        # the test kills far more often than a device should try
        retry_frames=0,
        conditions=replace(
            SETTINGS.orchestrator.conditions,
            min_new_samples=NEW_SAMPLES,
            min_new_when_asked=NEW_SAMPLES,
            min_calibration=1,
        ),
    ),
    personalisation=replace(SETTINGS.personalisation, epochs=4, batch_size=8, learning_rate=0.05),
    round_samples=32,
)


def live(life: Life, number: int, say) -> None:
    """Take frames until the first round is done; then wait to be killed."""
    from persephonee.clients.runtime.device_settings import Frame
    from tests.tiny_cnn import user_images

    life.device.events.listener = lambda event: say(f"event {event.kind}")
    images, labels = user_images(number, FRAMES)
    for i in range(FRAMES):
        key = f"{number}/{i}"
        image = torch.from_numpy(images[i])[None]
        answer = life.device.answer(Frame(key=key, image=image, label=int(labels[i])))
        if answer.stored:
            say(f"stored {key}")
        if life.device.personalise_if_due() is not None:
            return


def main() -> None:
    """Start a child for each line on stdin, and say when it has gone."""
    torch.set_num_threads(1)
    network, _ = load_network(Path(sys.argv[1]), allowed=(SOURCE,))

    def say(text: str) -> None:
        os.write(1, f"{text}\n".encode())

    say("ready")
    for line in sys.stdin:
        store, number, last = line.split()
        child = os.fork()
        if child == 0:
            say(f"child {os.getpid()}")
            live(start(network, Path(store), LIVED), int(number), say)
            if last == "no":
                time.sleep(60)
            os._exit(0)
        os.waitpid(child, 0)
        say("gone")


if __name__ == "__main__":
    main()

"""Files with a flipped bit or without their end, and what becomes of whoever reads them."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persephonee.commands.errors import sentence_of

SECONDS = 30
"""After which a reader counts as hanging."""

Reader = Callable[[Path], Any]


class Refused(Exception):
    """A verb ended with status 2 and one sentence."""


def ran(result) -> str:
    """Return what a verb printed; raise Refused where it refused, and what it raised where it raised."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 2:
        lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
        raise Refused(lines[0])
    assert result.exit_code in (0, 1), result.output
    return result.stdout


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return a file with one bit flipped, at its ends more often than in its middle, or one time in five cut off."""
    if draw.random() < 0.2:
        return content[: draw.randrange(len(content))]
    near = draw.randrange(min(len(content), 600))
    place = (draw.randrange(len(content)), near, -1 - near)[draw.randrange(3)]
    changed = bytearray(content)
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def outcome(read: Reader, folder: Path) -> Any:
    """Return what a reader makes of a folder, or its refusal; all else fails the test."""

    def hangs(number, frame):
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        return read(folder)
    except Refused:
        return Refused
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None or isinstance(error, TimeoutError):
            raise
        assert "\n" not in sentence and len(sentence) < 1500, sentence
        return Refused
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attack(product: Path, pattern: str, read: Reader, count: int, seed: int = 0) -> dict[str, int]:
    """Damage the files of a folder that match a pattern, one at a time, and read the folder each time.

    Args:
        product: the folder, whole; it stays as it is.
        pattern: of the files, below it.
        read: takes a copy of the folder, always under the same path, and returns what it found there.
        count: damaged copies, over all files that match.

    Returns:
        How many were refused, and of how many the right result was read.
    """
    work = product.parent / f"{product.name}-damaged"
    files = sorted(path.relative_to(product) for path in product.glob(pattern) if path.is_file())
    assert files, f"{product} has no {pattern}"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(product, work)
    whole = outcome(read, work)
    assert whole is not Refused, f"the whole {product} is refused"
    counts = {"refused": 0, "right": 0}
    draw = random.Random(seed)
    for number in range(count):
        name = files[number % len(files)]
        content = damaged((product / name).read_bytes(), draw)
        shutil.rmtree(work)
        shutil.copytree(product, work)
        (work / name).write_bytes(content)
        try:
            found = outcome(read, work)
        except BaseException:
            kept = product.parent / f"failed-{number}-{name.name}"
            kept.write_bytes(content)
            raise
        if found is not Refused:
            same = found == whole
            if not same:
                (product.parent / f"differs-{number}-{name.name}").write_bytes(content)
            assert same, f"damage {number} to {name} gave another result in silence"
        counts["refused" if found is Refused else "right"] += 1
    shutil.rmtree(work)
    print(f"{pattern}: {count} damaged, {counts['refused']} refused, {counts['right']} read right")
    return counts

"""Send messages to nodes and take what comes back before a deadline; a node that fails is named with its cause.

Flower's own `send_and_receive` polls every 3 s and says nothing until the end; here each reply is handed on as it
arrives, and what never arrives is a failure with words.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from persephonee.fl_app.wire.flower_private import ErrorCode, InMemoryGrid

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_WORDS = {
    ErrorCode.NODE_UNAVAILABLE: "the node went away during the round",
    ErrorCode.CLIENT_APP_CRASHED: "the client's process died, perhaps for want of memory",
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION: "the client could not load the app",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "the client stopped with an error",
    ErrorCode.MESSAGE_UNAVAILABLE: "the message was lost on its way",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "the reply was lost on its way",
    ErrorCode.MOD_FAILED_PRECONDITION: "a mod on the client refused the message",
    ErrorCode.INVALID_FAB: "the client refused the app",
}
# These carry the text of an exception, whose last line says what was wrong.
_WITH_REASON = {
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.MOD_FAILED_PRECONDITION,
}
FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 0.1, 1.0
LOOK_UPS = 3_000
"""A simulation's grid looks at every message for every node ten times a second, at 8 us each, in the process of the
server: with 250 messages to 250 nodes it does nothing else. So many look-ups take a quarter of a tenth of a second."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of one message."""

    node_id: int
    content: RecordDict | None
    """The reply, or None when there is none."""
    cause: str
    """Why there is none, in words; empty when there is a reply."""


def send_and_receive(
    grid: Grid,
    messages: Sequence[Message],
    deadline: float,
    on_answer: Callable[[Reply], None] = lambda _: None,
    counts: Callable[[Reply], bool] = lambda answer: answer.content is not None,
    enough: int | None = None,
) -> list[Reply]:
    """Send each message to its node and return one answer per message, in the order of the messages.

    Args:
        grid: Flower's connection to the nodes.
        messages: at most one per node.
        deadline: seconds to wait; what comes later is dropped.
        on_answer: called for each reply or error as it arrives.
        counts: says of an answer, after `on_answer`, whether it counts towards `enough`; by default every reply does.
        enough: answers that count, after which nobody is waited for any more; None waits for all.
    """
    end = time.monotonic() + deadline
    at_once = _messages_at_once(grid, len(messages))
    queue, node_of = deque(messages), dict[str, int]()
    waiting, unsent = set[str](), set[int]()
    replies: dict[int, Reply] = {}
    poll = FIRST_POLL_SECONDS
    counted = 0
    while (queue or waiting) and time.monotonic() < end and (enough is None or counted < enough):
        next_messages = [queue.popleft() for _ in range(min(len(queue), at_once - len(waiting)))]
        if next_messages:
            started = {str(sent) for sent in grid.push_messages(next_messages)}
            for message in next_messages:
                message_id, node_id = message.metadata.message_id, message.metadata.dst_node_id
                node_of[message_id] = node_id
                if message_id in started:
                    waiting.add(message_id)
                else:
                    unsent.add(node_id)
        arrived = _arrived(grid, waiting, node_of)
        for message_id, answer in arrived:
            if message_id in waiting:
                waiting.discard(message_id)
                replies[answer.node_id] = answer
                on_answer(answer)
                counted += counts(answer)
        if waiting:
            # who is done must not wait for its next message
            poll = FIRST_POLL_SECONDS if arrived or queue else min(poll * 1.5, LAST_POLL_SECONDS)
            time.sleep(min(poll, max(0.0, end - time.monotonic())))
    is_enough = enough is not None and counted >= enough
    late = f"no reply before {counted} others, which were enough" if is_enough else f"no reply within {deadline:g} s"
    nodes = [message.metadata.dst_node_id for message in messages]
    for node_id in nodes:
        cause = "the message could not be sent" if node_id in unsent else late
        replies.setdefault(node_id, Reply(node_id=node_id, content=None, cause=cause))
    return [replies[node_id] for node_id in nodes]


def is_simulation(grid: Grid) -> bool:
    """Return whether the nodes of a grid are simulated: by the grid itself, whatever a node says of itself."""
    return isinstance(grid, InMemoryGrid)


def _messages_at_once(grid: Grid, nodes: int) -> int:
    """Return how many messages may wait for a reply at a time: all of them, but in a simulation few for each core."""
    if not nodes or not is_simulation(grid):
        return max(nodes, 1)
    return max(2 * _cores(), LOOK_UPS // nodes)


def _cores() -> int:
    import ray

    if not ray.is_initialized():
        return os.cpu_count() or 1
    return int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]


def cause_in_text(code: int, reason: str) -> str:
    """Return an error of a node as one phrase, without colour codes and tracebacks."""
    words = _WORDS.get(code, f"the node answered with error {code}")
    if code not in _WITH_REASON and code in _WORDS:
        return words
    lines = [line.strip() for line in _ANSI.sub("", reason).replace("\\n", "\n").splitlines()]
    last = next((line for line in reversed(lines) if line.strip("'>\" ")), "")
    last = "".join(letter if letter.isprintable() else " " for letter in last)
    return f"{words} ({last.removesuffix(chr(39) + '>')[:200]})" if last else words


def _arrived(grid: Grid, waiting: set[str], node_of: Mapping[str, int]) -> list[tuple[str, Reply]]:
    """Return what has arrived, by the message that it answers.

    Flower decodes replies as it fetches them, all in one call, and what one of them raises would lose the others: they
    are fetched one by one. A simulation's replies were never encoded.
    """
    arrived: list[tuple[str, Reply]] = []
    for ids in [sorted(waiting)] if is_simulation(grid) else [[message_id] for message_id in sorted(waiting)]:
        try:
            # an error that the SuperLink makes up comes from itself: only the message's id tells whom it is about
            for reply in grid.pull_messages(ids):
                message_id = reply.metadata.reply_to_message_id
                if message_id in ids:
                    arrived.append((message_id, _answer(node_of[message_id], reply)))
        except (httpx.HTTPError, OSError):
            # the SuperLink does not answer, which is nobody's reply
            raise
        except Exception as error:
            if is_simulation(grid):
                raise
            cause = f"its reply cannot be decoded ({type(error).__name__})"
            arrived.append((ids[0], Reply(node_id=node_of[ids[0]], content=None, cause=cause)))
    return arrived


def _answer(node_id: int, reply: Message) -> Reply:
    if reply.has_error():
        cause = cause_in_text(reply.error.code, reply.error.reason or "")
        return Reply(node_id=node_id, content=None, cause=cause)
    return Reply(node_id=node_id, content=reply.content, cause="")

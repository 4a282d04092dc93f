import time

import httpx
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from persephonee.fl_app.server_side.messaging import cause_in_text, send_and_receive

NO_REPLY = "no reply within 0.5 s"
RAISED = (
    "<class 'flwr.clientapp.client_app.ClientAppException'>:<'\nException ClientAppException occurred. Message: "
    '\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=1, ip=10.0.0.2)\n  File "app.py", line 3, in train\n'
    "    raise ValueError(text)\nValueError: the disk is full'>"
)


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (
            ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
            RAISED,
            "the client stopped with an error (ValueError: the disk is full)",
        ),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "", "the client stopped with an error"),
        (ErrorCode.NODE_UNAVAILABLE, "Node unavailable.\nTraceback", "the node went away during the round"),
        (ErrorCode.CLIENT_APP_CRASHED, "x", "the client's process died, perhaps for want of memory"),
        (99, "\x1b[31modd\x1b[0m", "the node answered with error 99 (odd)"),
    ],
)
def test_a_cause_is_one_phrase_without_colours_and_tracebacks(code, reason, words):
    assert cause_in_text(code, reason) == words


class SlowGrid(Grid):
    """Node 1 answers, node 2 is reported dead by the SuperLink, node 3 answers too late, node 4 cannot be reached."""

    def __init__(self):
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.start = time.monotonic()
        self.messages = {}

    def set_run(self, run):
        pass

    run = None

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise AssertionError

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError

    def get_node_ids(self):
        return [1, 2, 3, 4]

    def push_messages(self, messages):
        for message in messages:
            message.metadata.__dict__.update(_message_id=f"m{message.metadata.dst_node_id}", _src_node_id=1)
            self.messages[message.metadata.message_id] = message
        return ["m1", "m2", "m3", None]

    def pull_messages(self, message_ids):
        assert "m4" not in message_ids
        since, replies = time.monotonic() - self.start, []
        for message_id in message_ids:
            asked = self.messages[message_id]
            if message_id == "m1":
                replies.append(Message(RecordDict(), reply_to=asked))
            elif message_id == "m2" and since > 0.1:
                reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=asked)
                reply.metadata.__dict__["_src_node_id"] = 1
                replies.append(reply)
            elif message_id == "m3" and since > 5:
                replies.append(Message(RecordDict(), reply_to=asked))
        return replies


def test_a_round_ends_at_its_deadline_and_names_each_node_without_a_reply():
    grid, arrived = SlowGrid(), []
    messages = [Message(RecordDict(), node, "train") for node in (1, 2, 3, 4)]
    predictions = send_and_receive(
        grid, messages, deadline=0.5, on_answer=lambda answer: arrived.append(answer.node_id)
    )
    assert time.monotonic() - grid.start < 2
    assert arrived == [1, 2]
    assert [answer.cause for answer in predictions] == [
        "",
        "the node went away during the round",
        NO_REPLY,
        "the message could not be sent",
    ]
    assert [answer.content is None for answer in predictions] == [False, True, True, True]


def test_a_reply_that_cannot_be_decoded_is_that_nodes_failure_and_loses_no_other(monkeypatch):
    grid = SlowGrid()
    pull = grid.pull_messages

    def decoding(message_ids):
        replies = pull(message_ids)
        if any(reply.metadata.reply_to_message_id == "m1" for reply in replies):
            raise ValueError("Invalid header")
        return replies

    monkeypatch.setattr(grid, "pull_messages", decoding)
    messages = [Message(RecordDict(), node, "train") for node in (1, 2, 3)]
    causes = [answer.cause for answer in send_and_receive(grid, messages, deadline=0.5)]
    assert causes == ["its reply cannot be decoded (ValueError)", "the node went away during the round", NO_REPLY]


def test_a_superlink_that_does_not_answer_is_nobodys_failure(monkeypatch):
    def unreachable(_):
        raise httpx.ConnectError("refused")

    grid = SlowGrid()
    monkeypatch.setattr(grid, "pull_messages", unreachable)
    with pytest.raises(httpx.ConnectError):
        send_and_receive(grid, [Message(RecordDict(), 1, "train")], deadline=0.5)


def test_a_round_ends_once_enough_have_replied_and_an_error_is_no_reply():
    grid = SlowGrid()
    messages = [Message(RecordDict(), node, "train") for node in (1, 2, 3)]
    predictions = send_and_receive(grid, messages, deadline=60, enough=1)
    assert time.monotonic() - grid.start < 2
    assert [answer.content is None for answer in predictions] == [False, True, True]
    assert predictions[2].cause == "no reply before 1 others, which were enough"


def test_a_reply_that_does_not_count_ends_no_round():
    grid = SlowGrid()
    messages = [Message(RecordDict(), node, "train") for node in (1, 2, 3)]
    predictions = send_and_receive(grid, messages, deadline=0.5, counts=lambda answer: False, enough=1)
    assert [answer.cause for answer in predictions] == ["", "the node went away during the round", NO_REPLY]


class Simulation(InMemoryGrid):
    """Answers everything that waits at each look, and notes how much that was."""

    def __init__(self):
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.waiting, self.looks = {}, []

    def push_messages(self, messages):
        for message in messages:
            message.metadata.__dict__.update(_message_id=f"m{message.metadata.dst_node_id}", _src_node_id=1)
            self.waiting[message.metadata.message_id] = message
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids):
        assert set(message_ids) == self.waiting.keys()
        self.looks.append(len(message_ids))
        return [Message(RecordDict(), reply_to=self.waiting.pop(one)) for one in message_ids]


def test_a_simulation_has_few_messages_on_their_way_and_all_are_answered(monkeypatch):
    monkeypatch.setattr("persephonee.fl_app.server_side.messaging._cores", lambda: 2)
    nodes = list(range(1, 11))
    grid = Simulation()
    predictions = send_and_receive(grid, [Message(RecordDict(), node, "train") for node in nodes], deadline=60)
    assert [answer.node_id for answer in predictions] == nodes
    assert all(answer.content is not None for answer in predictions)
    # ten nodes are few enough to have all of them at once
    assert grid.looks == [10]
    monkeypatch.setattr("persephonee.fl_app.server_side.messaging.LOOK_UPS", 30)
    grid = Simulation()
    predictions = send_and_receive(grid, [Message(RecordDict(), node, "train") for node in nodes], deadline=60)
    assert [answer.node_id for answer in predictions] == nodes
    assert grid.looks == [4, 4, 2]
    grid = Simulation()
    send_and_receive(grid, [Message(RecordDict(), node, "query") for node in range(1, 41)], deadline=60)
    assert grid.looks == [4] * 10
    # who was never asked had no reply either
    grid = Simulation()
    predictions = send_and_receive(
        grid, [Message(RecordDict(), node, "train") for node in nodes], deadline=60, enough=4
    )
    assert [answer.content is None for answer in predictions] == [False] * 4 + [True] * 6


def test_nobody_to_ask_is_nothing_to_wait_for():
    assert send_and_receive(SlowGrid(), [], deadline=60) == []

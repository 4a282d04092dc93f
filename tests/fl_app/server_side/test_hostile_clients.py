"""Nodes that lie about who and what they are: each is refused and named, and the run goes on."""

import pytest

from persephonee.fl_app.errors import RunFailedError
from persephonee.fl_app.server_side import run_rounds
from tests.fl_app.whole_runs import changed, run, with_status

pytestmark = pytest.mark.usefixtures("draw_nothing", "on_real_devices")


def lying(node, **claims):
    """Let a node answer the status query with other values."""

    node.claims = {key.replace("_", "-"): value for key, value in claims.items()}
    return node


@pytest.mark.parametrize("partition", [0, 1, 2**53])
def test_a_device_that_says_it_is_simulated_does_not_make_the_server_open_its_own_data(
    settings, device_node, make_grid, monkeypatch, partition
):
    def opened(*arguments):
        raise AssertionError("the server opened its data")

    monkeypatch.setattr(run_rounds, "open_fitting", opened)
    nodes = [device_node("u0", 1), lying(device_node("u1", 2), partition_id=partition)]
    assert with_status(run(make_grid(nodes, settings), settings)).to_dict() == {"u0": "ok"}


@pytest.mark.parametrize("also", [{}, {"client-id": "u1"}])
def test_a_device_with_a_partition_id_is_refused_and_reads_nothing(settings, device_node, make_grid, also, caplog):
    node = device_node("u1", 2, **{"partition-id": 0, "num-partitions": 2})
    if not also:
        del node.node_config["client-id"]
    assert with_status(run(make_grid([device_node("u0", 1), node], settings), settings)).to_dict() == {"u0": "ok"}
    assert "has num-partitions, which would let the server say whose data this device reads" in caplog.text


def test_a_run_of_devices_that_all_say_they_are_simulated_fails_in_a_sentence(settings, device_node, make_grid):
    with pytest.raises(RunFailedError, match="it says that it is simulated, and it is not"):
        run(make_grid([lying(device_node("u0", 1), partition_id=0)], settings), settings)


@pytest.mark.parametrize("name", ["", " ", "x" * 129, "a\nb", "\x1b[31mred"])
def test_an_id_that_is_none_is_refused_and_the_run_goes_on(settings, device_node, make_grid, name):
    nodes = [device_node("u0", 1), lying(device_node("u1", 2), client_id=name)]
    assert with_status(run(make_grid(nodes, settings), settings)).to_dict() == {"u0": "ok"}


def test_a_device_that_says_anothers_id_is_refused_and_named_and_does_not_shut_the_other_out(
    settings, device_node, make_grid, caplog
):
    own, thief, stranger = device_node("u0", 1), lying(device_node("u1", 2), client_id="u0"), device_node("u2", 3)
    own.registered_as, thief.registered_as = "u0", "u1"
    nodes = [own, thief, lying(stranger, client_id="u0")]
    lenient = changed(settings, min_reply_fraction=0.0)
    found = with_status(run(make_grid(nodes, lenient), lenient)).to_dict()
    assert found == {"u0": "ok", "u1": "refused: its key is registered as 'u1', and it says that it is 'u0'"}
    assert "it says that it is 'u0', which another key is registered as" in caplog.text
    assert not any(message.metadata.message_type == "train" for node in nodes[1:] for message in node.received)


def test_devices_whose_keys_have_no_names_take_part_under_the_ids_that_they_say(settings, device_node, make_grid):
    nodes = [device_node("u0", 1), device_node("u1", 2)]
    nodes[0].registered_as = "u0"
    assert with_status(run(make_grid(nodes, settings), settings)).to_dict() == {"u0": "ok", "u1": "ok"}


def test_devices_that_share_none_are_sent_no_merged_exits(settings, device_node, make_grid):
    # after an epoch an untrained exit may be worse than it was, and then stays at home
    sharing = changed(settings, share_exits=True, rounds=2, epochs=3)
    nodes = [device_node(f"u{i}", i + 1, **{"share-exits": i != 1}) for i in range(3)]
    assert set(with_status(run(make_grid(nodes, sharing), sharing))) == {"ok"}
    assert not any("exits" in message.content for message in nodes[1].received)
    assert any("exits" in message.content for message in nodes[0].received)


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_held_out_devices_that_share_none_are_not_measured_with_merged_exits(settings, device_node, make_grid, shares):
    apart = changed(settings, share_exits=True, held_out_fraction=0.25, rounds=1, min_sharers=1, epochs=3)
    nodes = [device_node(f"u{i}", i + 1, **{"share-exits": i < shares}) for i in range(4)]
    run(make_grid(nodes, apart), apart)
    for node in nodes[shares:]:
        assert not any("exits" in message.content for message in node.received)


@pytest.mark.draws_report
def test_ids_with_html_and_formulas_are_escaped_in_the_report(settings, device_node, make_grid):
    """Drawn here, though drawing takes seconds: see draw_nothing."""
    names = ("<script>alert(1)</script>", "=HYPERLINK(1)")
    nodes = [device_node("u0", 1)]
    for number, name in enumerate(names):
        nodes.append(lying(device_node(f"u{number + 1}", number + 2), client_id=name))
    lenient = changed(settings, min_reply_fraction=0.0)
    run_dir = run(make_grid(nodes, lenient), lenient)
    assert set(with_status(run_dir).index) == {"u0", *names}
    page = (run_dir / "report.html").read_text()
    assert "<script>alert" not in page

import itertools
import unicodedata

import pytest

from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.limits import MAX_ID_LENGTH
from persephonee.data_partitions.user_ids import check_ids, find_user, folder_name, id_complaint
from persephonee.fl_app.wire.record_keys import REPORT, REQUEST

ODD = [
    *("Ada", "ada", "ADA", "aDa", "é", unicodedata.normalize("NFD", "é"), "É", ".", "..", "...", "a/b", "a\\b", "a_b"),
    *("a%2Fb", "a b", "A_b", "con", "nul.txt", "con~", "x.", "日" * 128, "日" * 127, "u" * 128, "u" * 127 + "U", "~"),
    *("ß", "ss", "ﬁ", "fi", "ı", "i", "I", "-rf", "*", "?", ":", "#1", "@eaDir", "__MACOSX"),
]


def test_two_ids_never_share_a_folder_even_where_a_disk_ignores_case_and_unicode_form():
    names = {client_id: folder_name(client_id) for client_id in ODD}
    for one, other in itertools.combinations(ODD, 2):
        same = (unicodedata.normalize("NFC", names[client_id]).casefold() for client_id in (one, other))
        assert len(set(same)) == 2, (one, other)
    for client_id, name in names.items():
        assert name.isascii(), client_id
        assert 1 <= len(name) <= 80
        assert not set(name) & set('/\\:*?"<>|% ')
        assert not name.startswith((".", "-"))
        assert not name.endswith(".")


def test_an_id_cannot_take_the_folder_of_another_by_looking_like_its_name(tmp_path):
    assert folder_name(folder_name("Ada")) != folder_name("Ada")
    for number, client_id in enumerate(ODD):
        folder = tmp_path / folder_name(client_id)
        folder.mkdir()
        assert folder.parent == tmp_path, number


def test_a_plain_id_is_its_folder():
    for client_id in ("f2108_07", "hsf4_w2108", "u0001", "a.b-c"):
        assert folder_name(client_id) == client_id


@pytest.mark.parametrize(
    ("client_id", "complaint"),
    [
        ("", "empty"),
        ("  ", "empty"),
        (" a", "begins or ends with a space"),
        ("u" * 129, "129 characters"),
        ("Ada\u00a0L", r"U\+00A0"),
        ("a\nb", r"U\+000A"),
        ("a\u202eb", r"U\+202E"),
        ("\ud800", r"U\+D800"),
        ("\x1b[31m", r"U\+001B"),
    ],
)
def test_an_id_that_will_not_do_is_refused_in_a_sentence_that_can_be_printed(client_id, complaint):
    assert complaint.replace("\\", "") in id_complaint(client_id)
    with pytest.raises(
        BrokenDataError, match=f"Column 'user' holds the user id .* cannot be used: .*{complaint}"
    ) as caught:
        check_ids(["fine", client_id], "Column 'user'")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_ids_of_any_script_are_taken_and_none_twice():
    check_ids(["日本", "Ωmega", "a b", "Ada", "ada", "u" * MAX_ID_LENGTH], "Column 'user'")
    with pytest.raises(BrokenDataError, match="two users with the id 'a'"):
        check_ids(["a", "b", "a"], "Column 'user'")


def test_a_user_is_found_in_either_unicode_form_unless_there_are_two():
    composed, split = "Zo\u00eb", "Zoe\u0308"
    assert find_user(["x", split], composed) == 1
    assert find_user([composed, split], split) == 1
    assert find_user(["x"], composed) is None
    assert find_user(["ada"], "Ada") is None


def test_an_id_that_data_may_hold_may_travel():
    assert REPORT["client-id"].length == MAX_ID_LENGTH
    assert REQUEST["user"].length == MAX_ID_LENGTH

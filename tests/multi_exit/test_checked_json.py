import numpy as np
import pytest

from persephonee.multi_exit.checked_json import DIGEST_KEY, arrays_header, checked_state, with_digest, without_digest

VALUES = {"seed": 3, "user": "ada", "fingerprint": "0" * 64}
ARRAYS = {"weight": np.arange(3, dtype=np.float32)}


def renamed(values: dict) -> dict:
    return {"sia256" if key == DIGEST_KEY else key: value for key, value in values.items()}


def test_what_has_a_digest_comes_back_without_it_and_what_has_none_is_of_an_earlier_version():
    assert without_digest(with_digest(VALUES)) == VALUES
    assert without_digest(VALUES) == VALUES
    assert checked_state(arrays_header("text", ARRAYS), ARRAYS) == "text"
    assert checked_state({"state": "text"}, ARRAYS) == "text"


def test_a_changed_value_is_noticed():
    with pytest.raises(ValueError, match="changed or damaged"):
        without_digest({**with_digest(VALUES), "seed": 4})
    with pytest.raises(ValueError, match="changed or damaged"):
        checked_state({**arrays_header("text", ARRAYS), "state": "tixt"}, ARRAYS)


def test_a_digest_whose_name_is_damaged_does_not_make_a_file_one_of_an_earlier_version():
    with pytest.raises(ValueError, match="changed or damaged"):
        without_digest(renamed(with_digest(VALUES)))
    with pytest.raises(ValueError, match="changed or damaged"):
        checked_state(renamed(arrays_header("text", ARRAYS)), ARRAYS)

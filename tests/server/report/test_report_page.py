import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from persephonee.server.errors import ServerError
from persephonee.server.report.example_user_section import Example, ExampleUser
from persephonee.server.report.report_page import _settings_part, draw_report
from persephonee.server.results.pretraining_curves import write_curves
from persephonee.server.results.run_folder import RunFolder

FIGURES = ("accuracy-per-exit", "users-over-accuracy", "accuracy-against-cost", "exit-rates", "rounds")


def digests(path):
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


class Page(HTMLParser):
    """What a page refers to, its ids, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def drawn(fake_run, example_user) -> RunFolder:
    run = fake_run(rounds=2, users=6)
    draw_report(run.path, example_user)
    return run


@pytest.fixture(scope="module")
def page(drawn) -> Page:
    return Page((drawn.path / "report.html").read_text())


def test_the_page_asks_nothing_of_the_network(page):
    assert page.references
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert "script" not in page.tags and "link" in page.tags
    assert "@import" not in page.text and "url(http" not in page.text


def test_figures_and_images_stand_in_the_page_and_no_id_stands_twice(page, example_user):
    assert page.tags.count("svg") == len(FIGURES)
    images = [reference for reference in page.references if reference.startswith("data:image/png;base64,")]
    assert len(images) == len(example_user.examples)
    assert len(page.ids) == len(set(page.ids))
    targets = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert targets <= set(page.ids)


def test_the_page_names_those_who_were_left_out_and_ends_with_the_settings(page):
    for words in ("f3001_11", "too small: 8 samples", "f3004_40", "became NaN", "f3005_17", "never answered"):
        assert words in page.text
    assert "personalisation.learning_rate" in page.text


def test_figures_lie_beside_the_page_as_png_and_svg(drawn):
    for name in FIGURES:
        with Image.open(drawn.path / "figures" / f"{name}.png") as figure:
            assert figure.width > 1000
        assert (drawn.path / "figures" / f"{name}.svg").read_text().startswith("<?xml")


def test_redrawing_gives_the_same_bytes_and_keeps_the_example_user(drawn):
    first = digests(drawn.path)
    for name in ("summary.json", "report.html"):
        (drawn.path / name).unlink()
    draw_report(drawn.path)
    assert digests(drawn.path) == first


def test_a_run_of_several_rounds_shows_the_last_one_and_a_curve(page):
    assert "round 2" in page.text and "From round 1 to round 2" in page.text


def test_a_run_of_one_round_shows_no_curve(fake_run):
    run = fake_run(users=2)
    assert "From round" not in Page(draw_report(run.path).read_text()).text
    assert not (run.path / "figures" / "rounds.svg").exists()


def test_without_an_example_user_the_page_says_why(fake_run):
    text = Page(draw_report(fake_run(users=0).path).read_text()).text
    assert "a server never receives its users' samples" in text


def test_the_example_user_shows_the_very_pixels(fake_run):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    example = Example(image=pixels, label="<b>", before="x", after="<b>")
    run = fake_run(users=0)
    html = draw_report(run.path, ExampleUser(client_id="f0100_00", examples=(example,))).read_text()
    (png,) = re.findall(r"data:image/png;base64,([^\"]+)", html)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))), pixels.transpose(1, 2, 0))
    assert "&lt;b&gt;" in html and "<b>" not in html
    assert "1 test images went from wrong to right and 0 from right to wrong" in html


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.float32), np.zeros((2, 4, 4), np.uint8)])
def test_an_image_of_another_kind_is_refused(fake_run, image):
    example = Example(image=image, label="a", before="b", after="a")
    with pytest.raises(ServerError, match="example user"):
        draw_report(fake_run(users=0).path, ExampleUser(client_id="x", examples=(example,)))


def test_a_example_user_that_was_cut_off_is_one_sentence(fake_run):
    run = fake_run(users=0)
    (run.path / "figures").mkdir()
    (run.path / "figures" / "example_user.json").write_text('{"client_id": ')
    with pytest.raises(ServerError, match="not whole JSON"):
        draw_report(run.path)


def test_a_run_without_a_valid_user_still_has_a_page(fake_run):
    run = fake_run(users=0)
    text = Page(draw_report(run.path).read_text()).text
    assert "No user gave a valid result" in text and "f3004_40" in text
    assert json.loads((run.path / "summary.json").read_text())["counts"]["ok"] == 0


def test_labels_from_outside_cannot_become_markup(fake_run):
    run = fake_run(users=0, name="<script>alert(1)<")
    assert "script" not in Page(draw_report(run.path).read_text()).tags


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path, fake_run):
    with pytest.raises(ServerError, match="is no folder"):
        draw_report(tmp_path / "nothing")
    with pytest.raises(ServerError, match="is no run folder"):
        draw_report(tmp_path)
    run = fake_run(users=0)
    (run.path / "clients.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ServerError, match="not a whole parquet file") as caught:
        draw_report(run.path)
    assert "\n" not in str(caught.value)


def test_an_image_whose_answer_did_not_change_is_refused():
    with pytest.raises(ServerError, match="answer changed"):
        Example(image=np.zeros((4, 4), np.uint8), label="a", before="a", after="a")


def test_settings_that_differ_from_the_defaults_stand_before_the_others_which_are_folded_away():
    config = {"seed": 7, "epochs": 30, "momentum": 0.9, "versions": {"torch": "2"}, "changed": ["epochs"]}
    parts = _settings_part(config)
    assert parts["changed"] == [("seed", "7"), ("epochs", "30")]
    assert parts["config"] == [("momentum", "0.9"), ("versions.torch", "2")]


def test_the_report_shows_how_the_model_was_trained_where_that_is_known(fake_run):
    run = fake_run(rounds=1, users=4, name="trained")
    epochs = [
        {"epoch": number, "learning_rate": 0.1, "train_loss": 1.0, "validation_accuracy": (0.5, 0.25 * number)}
        for number in (1, 2, 3)
    ]
    write_curves(run.path, epochs)
    text = Page(draw_report(run.path).read_text()).text
    assert "3 epochs; at the end its first exit had 50.0 % and its last exit 75.0 %" in text
    assert (run.path / "figures" / "pretraining.png").is_file()

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from persephonee.commands.application import app
from persephonee.data_partitions.errors import MissingDataError
from persephonee.data_partitions.sources.published_sets import FEMNIST_CLASSES
from persephonee.data_partitions.synthetic.synthetic_writers import SyntheticWriters
from persephonee.experiments import figures
from persephonee.experiments.beyond.figure_width import popular_classes, variants
from persephonee.experiments.data.hub_parquet import as_png, hub_schema, write_rows
from persephonee.experiments.figures import NAMES, run_figures
from persephonee.experiments.paper.figure_5 import factor_words
from persephonee.experiments.studies.figure_results import judge
from persephonee.experiments.studies.gains import cheapest_reaching, exit_gains, first_reaching, original_accuracy
from persephonee.experiments.studies.measurements import Measured, measure
from persephonee.experiments.studies.studies import studies_of
from tests.conftest import real_data


def test_all_figures_at_smoke_scale_from_the_command_line_and_again_without_measuring(tmp_path):
    done = CliRunner().invoke(app, ["figures", "--scale", "smoke", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    for name in NAMES:
        file = f"figure-{name}-smoke"
        assert (tmp_path / f"{file}.png").stat().st_size > 10_000
        assert (tmp_path / f"{file}.svg").read_text().startswith("<?xml")
        claims = pd.read_parquet(tmp_path / f"{file}-claims.parquet")
        assert list(claims) == ["claim", "paper", "ours", "verdict"]
        assert len(claims)
        assert len(pd.read_parquet(tmp_path / f"{file}.parquet"))
        assert f"{file}.png" in (tmp_path / "results.md").read_text()

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    run_figures(["3a", "seeds", "guard"], "smoke", tmp_path)
    assert written == {path: path.stat().st_mtime_ns for path in written}

    numbers_agree_with_the_users_tables(tmp_path)

    # fewer users are some of them, so nothing is measured anew
    run_figures(["3a"], "smoke", tmp_path, users=3)
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert "3 users with" in (tmp_path / "results.md").read_text()


def numbers_agree_with_the_users_tables(out):
    measured = measure(studies_of("smoke", None, out)["writers"], out)
    exits = measured.exits
    whole = exits[exits.whole & (exits.scheme == "hard labels")]
    drawn = pd.read_parquet(out / "figure-3a-smoke.parquet")
    drawn = drawn[drawn.scheme == "hard labels"].set_index("exit")
    for exit, rows in whole.groupby("exit"):
        assert drawn.unguarded_mean[exit] == pytest.approx(sum(rows.unguarded) / len(rows))
        assert drawn.before_mean[exit] == pytest.approx(sum(rows.before) / len(rows))
    users = pd.read_parquet(out / "figure-users-smoke.parquet").set_index(["scheme", "exit"])
    changes = whole[whole.exit == 0].after - whole[whole.exit == 0].before
    assert users.hurt["hard labels", "0"] == sum(change < 0 for change in changes) / len(changes)
    assert users.worst["hard labels", "0"] == min(changes)
    # threshold 1 lets no sample leave early, so the sweep ends at the original
    sweeps = measured.sweeps
    ends = sweeps[(sweeps.threshold == 1.0) & (sweeps.scheme == "hard labels") & (sweeps.stage == "after")]
    last = whole[whole.exit == whole.exit.max()].set_index("user").after
    assert ends.set_index("user").accuracy.sort_index().tolist() == pytest.approx(last.sort_index().tolist())


def test_users_of_another_width_fraction_the_global_model_and_the_width_says_how_many_classes_they_meet():
    study = studies_of("smoke", None, Path("unused"))["writers"]
    others = variants(study)
    assert sorted(other.data.label_skew_width for other in others.values()) == [5, 20, 40]
    assert all(other.pool == study.pool for other in others.values())
    # 1.96 standard deviations to each side
    assert [popular_classes(200, width) for width in (2.5, 5, 10)] == [10, 20, 40]
    # popularity is flat, and 95 of 100 hold 95%
    assert popular_classes(100, 1e6) == 95


def a_study(users, macs):
    """Return what the tables of some users look like: per exit, the last one included, before and after."""
    rows = [
        {"user": user, "scheme": "hard labels", "num_train": 9, "whole": True, "exit": exit, "macs": macs[exit],
         "params": macs[exit], "before": before, "after": before, "unguarded": after}
        for user, accuracies in users.items() for exit, (before, after) in enumerate(accuracies)
    ]  # fmt: skip
    empty = pd.DataFrame()
    network = SimpleNamespace(num_exits=len(macs) - 1)
    return Measured(None, network, None, 0, pd.DataFrame(rows), empty, empty, empty, empty, 0.0)


def test_an_exit_reaches_what_the_interval_of_its_difference_does_not_exclude():
    # two users who are alike leave no interval; read without the guard
    alike = [(0.2, 0.3), (0.3, 0.45), (0.4, 0.55), (0.5, 0.5)]
    measured = a_study({"ada": alike, "bob": alike}, macs=[20, 25, 50, 100])
    gains = exit_gains(measured, "hard labels")
    assert [gain.points.mean for gain in gains] == pytest.approx([-20, -5, 5])
    assert all(gain.points.low == gain.points.high for gain in gains)
    assert first_reaching(gains).exit == 2 and first_reaching(exit_gains(measured, "hard labels", "before")) is None
    assert cheapest_reaching(gains, "macs").macs == 0.5
    assert cheapest_reaching(gains, "macs", points=5).exit == 2 and cheapest_reaching(gains, "macs", points=6) is None
    assert factor_words(measured, "hard labels", "macs") == (2.0, "2.0x by exit 2, +5.0 points (5.0 to 5.0)")
    assert factor_words(measured, "hard labels", "macs", 6) == (
        None, "not reached; exit 2 has +5.0 points (5.0 to 5.0)",
    )  # fmt: skip
    assert original_accuracy(measured) == 0.5


def test_users_who_differ_give_an_interval_that_holds_their_mean():
    better, worse = [(0.2, 0.6), (0.5, 0.5)], [(0.2, 0.3), (0.5, 0.5)]
    (gain,) = exit_gains(a_study({"ada": better, "bob": worse}, macs=[50, 100]), "hard labels")
    # resamples of two users are means of -20, -5 or +10 points
    assert (gain.points.low, gain.points.mean, gain.points.high) == pytest.approx((-20, -5, 10))
    assert gain.reaches() and gain.reaches(10) and not gain.reaches(11)


def test_a_claim_holds_in_part_where_it_does_not_go_as_far():
    assert judge(same_direction=True, as_far=True) == "holds"
    assert judge(same_direction=True, as_far=False) == "holds in part"
    assert judge(same_direction=False, as_far=False) == "does not hold"


def test_an_unknown_figure_scale_or_study_is_one_sentence(tmp_path):
    wrong = {"9": "figure 9 is unknown", "--scale=huge": "scale=huge is unknown", "--study=vgg": "study vgg is unknown"}
    for argument, words in wrong.items():
        done = CliRunner().invoke(app, ["figures", argument, "--out", str(tmp_path)])
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        assert words in done.output


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_without_real_data_the_writers_stand_in_with_all_that_the_figures_at_smoke_scale_show(scale):
    alone, smoke = (studies_of(name, None, Path("unused"))["writers"] for name in (scale, "smoke"))
    assert alone.schemes == smoke.schemes
    assert len(alone.sample_counts) == len(smoke.sample_counts)
    # a split trains with some 100 samples of a writer
    assert max(alone.sample_counts) <= 100


def test_another_seed_draws_other_users_of_photographs_and_keeps_the_pool_of_writers():
    writers = studies_of("smoke", None, Path("unused"))["writers"]
    assert writers.seeded(3) == replace(writers, seed=3)
    photographs = replace(writers, data=replace(writers.data, dataset="imagefolder", data_path=Path("photographs")))
    other = photographs.seeded(3)
    assert (other.seed, other.data.seed, other.model.training.seed) == (3, 3, 3)
    assert photographs.seeded(0) == photographs


def test_users_measured_by_two_processes_have_the_tables_of_one(tmp_path):
    study = replace(studies_of("smoke", None, tmp_path)["writers"], num_users=3, sample_counts=())
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    with one_torch_thread():
        one = measure(study, alone)
    # the second call finds the model, and one user of three
    copytree(alone, shared)
    measured = sorted((shared / "shared").glob("smoke-*/users/*"))
    for folder in measured[1:]:
        rmtree(folder)
    two = measure(study, shared, processes=2)
    for name in ("exits", "policies", "sweeps"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name))
    assert all((folder / "time.parquet").stat().st_size for folder in measured)


def write_femnist(folder: Path, users: int) -> None:
    """Write the first built-in writers as the hub writes FEMNIST."""
    drawn = SyntheticWriters(num_writers=users)
    samples = {f"f{number:04d}_00": drawn.load_partition(number) for number in range(users)}
    rows = (
        {"image": as_png(image[0]), "writer_id": writer, "hsf_id": 0, "character": int(label)}
        for writer, known in samples.items()
        for image, label in zip(known.images, known.labels, strict=True)
    )
    columns = {"image": "image", "writer_id": "string", "hsf_id": "int64", "character": FEMNIST_CLASSES}
    (folder / "data").mkdir(parents=True)
    write_rows(folder / "data" / "train-00000-of-00001.parquet", hub_schema(columns), rows, 1000, "zstd")


def test_figure_3b_is_drawn_on_femnist_where_its_files_are(tmp_path, monkeypatch):
    write_femnist(tmp_path / "data" / "femnist", users=24)
    smoke = studies_of("smoke", None, tmp_path)["writers"]
    study = studies_of("quick", tmp_path / "data", tmp_path)["femnist"]
    small = replace(smoke, name=study.name, title=study.title, data=study.data, sample_counts=())
    monkeypatch.setattr(figures, "studies_of", lambda *args, **options: {"femnist": small})
    (picture,) = figures.run_figures(["3b"], "quick", tmp_path / "out", tmp_path / "data")
    assert picture.name == "figure-3b-femnist.png"
    assert "FEMNIST, MobileNetV2 from scratch" in (tmp_path / "out" / "results.md").read_text()


def test_a_folder_without_data_of_a_study_is_refused(tmp_path):
    with pytest.raises(MissingDataError, match=r"holds no data of a study: fill it as docs/data\.md says\."):
        studies_of("quick", tmp_path, tmp_path)


@contextmanager
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_the_study_of_photographs_runs_on_real_weights(tmp_path):
    real = real_data("tiny-imagenet-200/train.parquet").parent.parent
    study = studies_of("quick", real, tmp_path)["mobilenet_v2"]
    # the same way with less of everything: one validation file, its own size, two users
    data = replace(study.data, data_path=real / "tiny-imagenet-200" / "validation.parquet", image_size=64)
    training = replace(study.model.training, epochs=1, max_samples=256)
    study = replace(
        study,
        data=replace(data, num_users=2, samples_per_user=100),
        model=replace(study.model, training=training),
        num_users=2,
        epochs=2,
        sample_counts=(10, 40),
    )
    measured = measure(study, tmp_path)
    assert sorted(measured.exits.user.unique()) == ["u0000", "u0001"]
    assert set(measured.exits.exit) == set(range(7))
    # 200 classes: a frozen backbone whose head was cut wrongly would stay at chance
    assert original_accuracy(measured) > 0.1

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from persephonee.clients.errors import ClientSettingsError
from persephonee.commands.terminal import program_of
from persephonee.experiments.results_page import page_marks
from persephonee.experiments.results_page.figures_section import read_claims
from persephonee.experiments.results_page.page import BEGIN, END, SECTIONS, main, replace_part
from persephonee.experiments.results_page.sharing_section import held_out_means
from persephonee.experiments.results_page.sources import recognise
from persephonee.experiments.studies.figure_results import Claim
from tests.commands.command_line import refused

CONFIG = {
    "dataset": "parquet",
    "data-path": "digits/train.parquet",
    "user-column": "who",
    "label-column": "character",
    "clients": 4,
    "rounds": 1,
    "labels": "none",
    "drop-tolerance": 0.02,
    "seed": 3,
    "model": "f" * 64,
}
MEAN = {name: {"mean": value} for name, value in (("half", 0.5), ("most", 0.75), ("many", 30.0))}
CHANGE = {"helped": 0.5, "hurt": 0.25}
SUMMARY = {
    "counts": {"asked": 4, "ok": 3, "too_small": 1, "refused": 0, "failed": 0},
    "num_train": MEAN["many"],
    "num_test": MEAN["many"],
    "exits": [
        {
            "exit": exit,
            "is_last": exit == 1,
            "macs": 2e6 * (exit + 1),
            "cost_fraction": 0.5 * (exit + 1),
            "accuracy_before": MEAN["half"],
            "accuracy_after": MEAN["most"],
            "change": CHANGE,
        }
        for exit in range(2)
    ],
    "policy": {
        "accuracy_original": MEAN["most"],
        "accuracy_before": MEAN["half"],
        "accuracy_after": MEAN["most"],
        "change": CHANGE,
        "against_original": CHANGE,
        "mean_macs_after": 3e6,
        "original_macs": 4e6,
        "cost_fraction_after": MEAN["most"],
    },
}


def write_run(folder, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def write_held_out(folder, gain):
    rows = [
        {"round": number, "client_id": user, "status": "ok", "exit": exit, "stage": "before",
         "accuracy": 0.4 + 0.1 * exit + gain * number + 0.02 * (user == "b")}
        for number in range(3) for user in "ab" for exit in range(4)
    ]  # fmt: skip
    small = [{"round": 0, "client_id": "c", "status": "too small: 3 samples"}]
    pd.DataFrame(rows + small).to_parquet(folder / "held_out.parquet")


def write_figure(folder, name, claims, study="resnet50"):
    folder.mkdir(exist_ok=True)
    facts = {"title": f"Fig. {name}", "study": study, "made_on": f"Tiny ImageNet, {study}", "scale": "quick",
             "cpu_seconds": 600, "machine": "x86", "note": "Read with care.\n",
             "versions": "Python"}  # fmt: skip
    stem = f"figure-{name}-{study}"
    call = {"command": ["persephonee figures", "--scale quick"], "seconds": 5430}
    (folder / "calls.json").write_text(json.dumps([call]))
    (folder / f"{stem}.json").write_text(json.dumps(facts))
    (folder / f"{stem}.png").write_bytes(b"a picture")
    pd.DataFrame(claims).to_parquet(folder / f"{stem}-claims.parquet")
    return folder


def claim(name="fewer MACs", paper="3x", verdict="holds"):
    return {"claim": name, "paper": paper, "ours": "2x", "verdict": verdict}


def run_page(*arguments):
    return CliRunner().invoke(program_of(main), [str(argument) for argument in arguments])


def test_a_page_holds_what_the_tables_say_and_names_what_is_missing(tmp_path):
    run = write_run(tmp_path / "digits-none")
    done = run_page(run, "--out", tmp_path / "docs" / "results.md")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| QMNIST by writer, none | 3 (1 too small) | 75.0% | 50.0% | 75.0% | 75% | 50% | 25% |" in page
    command = page[page.index("persephonee simulate") :].split("```")[0].replace("\\\n", " ")
    assert "--user-column who" in command and "--labels none" in command and "--seed 3" in command
    assert "--label-column" not in command
    given = {"Simulated federations, one round, metrics only"}
    for section in SECTIONS:
        body = page.split(f"## {section.title}\n")[1].split("\n## ")[0]
        assert ("Missing: no tables were given." in body) == (section.title not in given), section.title


def test_a_section_whose_tables_are_not_given_stays_and_its_numbers_are_kept(tmp_path):
    page, tables = tmp_path / "results.md", tmp_path / "tables"
    assert run_page(write_run(tmp_path / "digits-none"), "--out", page).exit_code == 0
    assert json.loads((tables / "run-digits-none.json").read_text()) == SUMMARY
    shared = write_run(tmp_path / "shared", **{"rounds": 2})
    write_held_out(shared, gain=0.05)
    assert run_page(shared, "--out", page).exit_code == 0
    text = page.read_text()
    assert text.count("| QMNIST by writer, none | 3 (1 too small) |") == 1
    assert text.count("## Sharing exits") == 1 and "| 0 | 41.0% | 51.0% (+10.0) |" in text
    assert (tables / "run-digits-none.json").exists()
    kept = pd.read_csv(tables / "sharing-shared.csv")
    assert kept[(kept["round"] == 2) & (kept.exit == 0)].accuracy.item() == pytest.approx(0.51)
    # a third call with nothing new changes nothing
    assert run_page(shared, "--out", page).exit_code == 0
    assert page.read_text() == text


def test_a_figure_has_one_table_with_a_column_for_each_study_and_the_readme_has_what_is_deployed(tmp_path):
    deployed = claim(paper="not given", verdict=None)
    figures = write_figure(tmp_path / "figures", "deployed", [deployed], "mobilenet_v2")
    write_figure(figures, "3a", [claim(), claim("faster", verdict="does not hold")], "mobilenet_v2")
    write_figure(figures, "3a", [claim(verdict="holds in part")])
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{BEGIN}\nold\n{END}\nend\n")
    done = run_page(figures, "--out", tmp_path / "docs" / "results.md", "--readme", readme)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| claim | paper | ResNet-50 | MobileNetV2 |" in page
    assert "| fewer MACs | 3x | 2x; *holds in part* | 2x; *holds* |" in page
    # a claim that one study does not make
    assert "| faster | 3x | – | 2x; *does not hold* |" in page
    assert page.count("### Fig. 3a") == 1 and "Read with care.\n" in page
    assert "| ResNet-50 | Tiny ImageNet, resnet50 |" in page
    assert "| Tiny ImageNet, resnet50 | 10 | x86, Python |" in page
    assert "This call took 1 h 30 min on the clock." in page
    # what the paper says nothing of has no column for it
    assert "| what | MobileNetV2 |\n|---|---|\n| fewer MACs | 2x |" in page
    assert (tmp_path / "docs" / "images" / "results-3a-mobilenet_v2.png").read_bytes() == b"a picture"
    assert "[MobileNetV2](images/results-3a-mobilenet_v2.png)" in page
    text = readme.read_text()
    assert text.startswith("# Title\n") and text.endswith(f"{END}\nend\n") and "old" not in text
    assert "(docs/images/results-deployed-mobilenet_v2.png)" in text and "[docs/results.md](docs/results.md)" in text
    assert "| fewer MACs | 2x |" in text


def test_what_a_person_wrote_stays_when_the_page_is_made_again(tmp_path):
    page, run = tmp_path / "results.md", write_run(tmp_path / "digits-none")
    assert run_page(run, "--out", page).exit_code == 0
    first = page.read_text()
    assert f"{page_marks.BEGIN}\n\n{page_marks.END}" in first
    written = "Written on a day about a machine.\n\n- *MACs.* Too few samples."
    page.write_text(first.replace(page_marks.BEGIN, f"{page_marks.BEGIN}\n{written}"))
    assert run_page(run, "--out", page).exit_code == 0
    assert page.read_text() == first.replace(f"{page_marks.BEGIN}\n", f"{page_marks.BEGIN}\n{written}")


def test_a_claim_comes_back_from_its_table(tmp_path):
    pd.DataFrame([claim(), claim(verdict=None)]).to_parquet(tmp_path / "claims.parquet")
    assert read_claims(tmp_path / "claims.parquet") == (Claim(**claim()), Claim(**claim(verdict=None)))


def test_curves_over_rounds_are_means_over_the_held_out_users(tmp_path):
    plain = write_run(tmp_path / "plain", **{"rounds": 2})
    shared = write_run(tmp_path / "shared", **{"rounds": 2, "share-exits": True, "strategy": "fedadam"})
    write_held_out(plain, gain=0.0)
    write_held_out(shared, gain=0.05)
    sources = recognise([plain, shared])
    means = held_out_means(sources.runs[1]).set_index(["round", "exit"]).accuracy
    # users a and b differ by 0.02; two rounds give 0.05 each
    assert means[2, 1] == pytest.approx(0.5 + 0.1 + 0.01)
    done = run_page(plain, shared, "--out", tmp_path / "results.md")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "results.md").read_text()
    assert "| exit | at the start | metrics only, round 2 | fedadam, round 2 |" in page
    assert "| 0 | 41.0% | 41.0% (+0.0) | 51.0% (+10.0) |" in page
    assert (tmp_path / "images" / "results-sharing-parquet.png").stat().st_size > 10_000


def test_the_meta_learning_table_is_a_mean_over_early_exits(tmp_path):
    folder = tmp_path / "meta"
    folder.mkdir()
    rows = [
        {"start": start, "samples": 10, "epochs": 1, "exit": exit, "accuracy": 0.5 + 0.1 * exit + gain, "gain": gain,
         "users": 7}
        for start, gain in (("pretrained", 0.0), ("reptile", 0.03)) for exit in range(3)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "meta-learning-writers.csv", index=False)
    assert run_page(folder, "--out", tmp_path / "results.md").exit_code == 0
    page = (tmp_path / "results.md").read_text()
    assert "### writers, 7 held-out users" in page
    assert "| 10 | 1 | 55.0% (+0.0) | 58.0% (+3.0) |" in page


def test_the_membership_table_is_taken_as_it_is(tmp_path):
    row = {"release": "exits", "attack": "LiRA", "auc": 0.612, "auc_se": 0.01, "advantage": 0.2, "found": 0.055,
           "accuracy": 0.93}  # fmt: skip
    folder = tmp_path / "attacks"
    folder.mkdir()
    pd.DataFrame([row]).to_csv(folder / "membership-writers.csv", index=False)
    assert run_page(folder, "--out", tmp_path / "results.md").exit_code == 0
    page = (tmp_path / "results.md").read_text()
    assert "| exits | LiRA | 0.612 ± 0.010 | 0.200 | 5.5% | 93.0% |" in page


def test_what_cannot_be_used_is_one_sentence(tmp_path):
    said = refused(tmp_path, "--out", tmp_path / "results.md", program=program_of(main))
    assert "holds no figures, no finished run" in said
    with pytest.raises(ClientSettingsError, match="needs the markers"):
        replace_part(f"{END} {BEGIN}", "new")

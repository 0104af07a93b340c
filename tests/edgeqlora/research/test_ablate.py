"""`edgeqlora ablate` on tiny runs: equal budgets, resumed, and refused before any work."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeqlora.errors import UserError
from edgeqlora.research.ablate import _claimed
from edgeqlora.research.study import chosen_rates, mean_loss, read_study

STUDY = """
base_model = "{model}"
train = "manifest.jsonl"
dev = "dev.jsonl"
test = "test.jsonl"
canary = "canary.jsonl"
seeds = [1]
learning_rates = [1e-3]
primary = ["ear"]
clips = 8
[settings]
steps = 2
batch_size = 4
language = "en"
cache = "none"
[[arm]]
name = "uniform"
ranks = "uniform:4"
[[arm]]
name = "ear"
plan = {{ mode = "ear", mean_rank = 4 }}
[[compare]]
arm = "ear"
against = ["uniform"]
"""


@pytest.fixture
def study(tiny_model, clips):
    rng = np.random.default_rng(7)
    for name, n_samples in (("test", 8000), ("canary", 32000)):
        rows = []
        for i in range(8):
            audio = (0.1 * rng.standard_normal(n_samples)).astype(np.float32)
            soundfile.write(clips.parent / f"{name}-{i}.wav", audio, 16000)
            rows.append({"audio": f"{name}-{i}.wav", "text": "lights on", "speaker": f"{name[0]}{i}"})
        (clips.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = clips.parent / "study.toml"
    path.write_text(STUDY.format(model=tiny_model))
    return path


@pytest.mark.slow
def test_two_arms_are_trained_compared_and_not_trained_again(study, command, tmp_path, with_pictures):
    out = tmp_path / "study"
    code, said = command("ablate", study, "-o", out)
    assert code == 0, said
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == ["ear", "uniform"]
    assert len({row["trained"]["trainable_parameters"] for row in rows}) == 1
    assert all(row["trained"]["peak_rss"] > 100 and row["test_loss"] > 0 and row["adapter_bytes"] > 0 for row in rows)
    conclusion = json.loads((out / "conclusion.json").read_text())
    assert conclusion["arms"][1]["against"]["loss"]["n_speakers"] == 8
    assert "- ear against uniform (primary, 1 seeds, 8 speakers): loss not decided (1 seeds and 8 speakers" in said
    assert "\n- ear against uniform (not primary, 1 seeds, 8 speakers): loss " in said
    assert conclusion["comparisons"][0]["against"] == {
        figure: {key: value for key, value in of.items() if key != "p_holm"}
        for figure, of in conclusion["arms"][1]["against"].items()
    }
    table = (out / "table.md").read_text()
    assert "| adapter, MiB | canary WER, % |" in table
    assert f" | {conclusion['arms'][0]['canary_wer']:.2f} |\n" in table
    assert all(sum(one["words"] for one in row["canary"]) == 16 for row in rows), "clips longer than the task's window"
    assert "| uniform | 0.001 | 1 |" in table
    assert "\n- ear: ranks from the two halves of the clips: rank correlation " in table
    assert (out / "differences.svg").stat().st_size > 3000
    # The kept rows alone give the same table.
    code, again = command("ablate", study, "-o", out / "results.jsonl", "--only-report")
    assert (code, again.strip()) == (0, table.strip())
    assert not list((out / "work").glob("*/"))  # what was trained is gone, --keep keeps it
    stamps = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    code, _ = command("ablate", study, "-o", out)
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == stamps
    # A row from before a setting was there goes on counting.
    row = out / "rows/final-uniform-1-0.001.json"
    content = json.loads(row.read_text())
    assert content["conditions"].pop("reallocate") is False
    row.write_text(json.dumps(content))
    assert command("ablate", study, "-o", out)[0] == 0
    text = study.read_text()
    for change, told in (
        (("clips = 8", "clips = 4"), "holds runs with another tune_seed or clips"),
        (("mean_rank = 4", "mean_rank = 5"), "is of another plan than arm ear has"),
        (("steps = 2", "steps = 3"), "was made with another steps than arm uniform has now"),
        (("uniform:4", "uniform:2"), "was made with another ranks than arm uniform has now"),
        (('dev = "dev', 'dev = "manifest'), "train and dev of the study share clips"),
        (('test = "test', 'test = "dev'), "dev and test of the study share clips"),
        (("steps = 2", 'steps = 2\nreplay = "test.jsonl"'), "test and replay of arm uniform of the study share clips"),
        (('canary = "canary', 'canary = "dev'), "dev and canary of the study share clips"),
        (
            ("steps = 2", 'steps = 2\nreplay = "canary.jsonl"'),
            "canary and replay of arm uniform of the study share clips",
        ),
    ):
        study.write_text(text.replace(*change))
        code, said = command("ablate", study, "-o", out)
        assert (code, told in said) == (2, True), said
    rows = (study.parent / "test.jsonl").read_text()
    (study.parent / "test.jsonl").write_text(rows.replace("lights on", "lights off"))
    study.write_text(text)
    code, said = command("ablate", study, "-o", out)
    assert (code, "holds runs with another test" in said) == (2, True), said


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("steps = 2", "stepz = 2"), "arm uniform: 'stepz' is no setting of train"),
        (("steps = 2", "steps = 0"), "arm uniform: steps=0 is out of range: allowed is 1 to 100000000"),
        (('mode = "ear"', 'mode = "magic"'), "arm ear: mode='magic': allowed are ear"),
        (
            ("mean_rank = 4", "mean_rnk = 4"),
            "arm ear: plan={'mode': 'ear', 'mean_rnk': 4}, allowed is a table of mode, mean_rank",
        ),
        (("mean_rank = 4", "mean_rank = 1"), "arm ear: mean_rank=1, least=2"),
        (('name = "ear"', 'name = "uniform"'), "arms uniform, uniform: one is there twice"),
        (
            ("plan = { mode", 'method = "lora"\nplan = { init = "qera", mode'),
            "makes up for the error of NF4: allowed is method=",
        ),
        (("plan = {", 'drop_layers = "encoder:0"\nplan = {'), "a plan and drop_layers"),
        (('name = "ear"', 'name = "a/b"'), "an arm is named 'a/b': letters, digits"),
        (('primary = ["ear"]', 'primary = ["eva"]'), "'eva' is no arm, allowed are uniform, ear"),
        (('name = "ear"', 'name = "ear"\nrate_of = "eva"'), "'eva' is no arm"),
        (('against = ["uniform"]', 'against = ["uniform", "eva"]'), "'eva' is no arm, allowed are uniform, ear"),
        (('against = ["uniform"]', "against = []"), "compare.0.against=[]: list should have at least 1 item"),
        (('name = "ear"', 'name = "ear"\nrate_of = "ear"'), "an arm lends its learning rate and takes that of another"),
        (
            ('name = "ear"', 'name = "ear"\nlearning_rates = [1e-5, 1e-4]'),
            "arm ear: learning_rates=[1e-05, 0.0001], allowed are as many as the study has (1)",
        ),
        (
            ('name = "ear"', 'name = "ear"\nlearning_rates = [1e-4, 1e-4]'),
            "learning_rates=[0.0001, 0.0001], allowed are",
        ),
        (
            ('name = "ear"', 'name = "ear"\nlearning_rates = [1e-4]\nrate_of = "uniform"'),
            "arm ear: learning_rates=[0.0001] and rate_of='uniform': give one of them",
        ),
        (('name = "ear"', 'name = "ear"\nlearning_rates = ["a"]'), "arm ear: learning_rates=['a'], allowed are"),
        (('name = "ear"', 'name = "ear"\nlearning_rates = [2.0]'), "arm ear: learning_rates=[2.0], allowed are"),
        (('name = "ear"', 'name = "ear"\nrate_of = 3'), "rate_of=3, allowed is the name of an arm"),
        (("seeds = [1]", "seeds = [0, 1]"), "tune_seed=0 is one of the seeds"),
        (("seeds = [1]", 'seeds = ["a"]'), "seeds.0='a': input should be a valid integer"),
        (("seeds = [1]", "seed = [1]"), "seed=[1]: extra inputs are not permitted"),
        (("steps = 2", "seed = 2"), "arm uniform: seed: given by the study itself"),
        (("steps = 2", 'steps = 2\ncanary = "a.jsonl"'), "arm uniform: canary: given by the study itself"),
        (("[settings]", "[settings"), "is not valid TOML"),
    ],
)
def test_a_study_that_cannot_be_is_refused(change, text, study, command, tmp_path):
    study.write_text(study.read_text().replace(*change))
    code, said = command("ablate", study, "-o", tmp_path / "study")
    assert (code, text in said) == (2, True), said
    assert not (tmp_path / "study").exists()


def test_a_study_that_is_not_there_and_a_report_of_nothing(study, command, tmp_path):
    code, said = command("ablate", tmp_path / "none.toml")
    assert (code, "see docs/ranks.md for one to start from" in said) == (2, True), said
    code, said = command("ablate", study, "-o", tmp_path / "empty", "--only-report")
    assert (code, "has no runs: leave --only-report out" in said) == (2, True), said


ROW = '{"arm": "ear", "stage": "final", "seed": 1, "learning_rate": 1e-3, "trained": {}, "adapter_bytes": 1'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no JSON", "is no results.jsonl of a study: JSONDecodeError('Expecting value"),
        ('{"arm": "ear"}', "is no results.jsonl of a study: KeyError('stage')"),
        ("[1]", "is no results.jsonl of a study: "),
        ("", "has no row of this study's arms (uniform, ear)"),
        (ROW.replace('"ear"', '"eva"') + ', "test": []}', "has no row of this study's arms (uniform, ear)"),
        (ROW + "}", "a row has no test, from which verdicts follow: it was written by an older version"),
    ],
)
def test_a_file_that_is_no_results_is_refused(text, told, study, command, tmp_path):
    (tmp_path / "results.jsonl").write_text(text + "\n" * bool(text))
    code, said = command("ablate", study, "-o", tmp_path / "results.jsonl", "--only-report")
    assert (code, told in said) == (2, True), said


def test_two_processes_do_not_both_measure(study, tmp_path, monkeypatch):
    """The claim was given back before the measurement began."""
    from edgeqlora.research import ablate

    (tmp_path / "work").mkdir()
    held = []

    def measured(*arguments, **options):
        with _claimed(tmp_path / "work" / "measure.claim") as is_ours:
            held.append(is_ours)
        raise KeyboardInterrupt

    monkeypatch.setattr(ablate, "measure", measured)
    with pytest.raises(KeyboardInterrupt):
        ablate._ranks_files(read_study(study), tmp_path, print)
    assert held == [False], "while one measures, the claim is not free"


def test_a_measurement_of_another_machine_is_waited_for_and_said(study, tmp_path, monkeypatch):
    from edgeqlora.research import ablate

    (tmp_path / "work").mkdir()
    claim, said = tmp_path / "work" / "measure.claim", []
    claim.write_text('{"pid": 1, "host": "another"}')

    def wait(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablate.time, "sleep", wait)
    with pytest.raises(KeyboardInterrupt):
        ablate._ranks_files(read_study(study), tmp_path, said.append)
    assert said == [f"waiting for the measurement, which another process is at; if it is gone, remove {claim}"]
    without = study.read_text().replace('plan = { mode = "ear", mean_rank = 4 }', 'ranks = "uniform:2"')
    study.write_text(without)
    ablate._ranks_files(read_study(study), tmp_path, said.append)  # nothing to measure: no claim is in its way


def test_utterances_are_kept_where_not_all_runs_count_the_same_clips(tmp_path):
    """Sums of speakers would leave out all of a speaker, where one clip of hers is longer than an arm's window."""
    from edgeqlora.research.ablate import write_results

    clips = [
        {"clip": c, "speaker": c[0], "errors": 1, "words": 2, "loss": 3.0, "tokens": 4} for c in ("a1", "a2", "b1")
    ]
    cut = [{**clips[0], "loss": 0.0, "tokens": 0}, *clips[1:]]
    common = {"stage": "final", "seed": 1, "learning_rate": 1e-3}
    for other, n_kept in ((clips, 2), (cut, 3)):
        write_results([{"arm": "uniform", "test": clips, **common}, {"arm": "ear", "test": other, **common}], tmp_path)
        kept = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
        assert [len(row["test"]) for row in kept] == [n_kept, n_kept]


def test_each_arm_gets_the_rate_that_is_best_on_dev(study):
    study.write_text(study.read_text().replace("learning_rates = [1e-3]", "learning_rates = [1e-3, 1e-2]"))
    asked = read_study(study)
    assert [run.key for run in asked.rate_runs] == [
        "rate-uniform-0-0.001", "rate-ear-0-0.001", "rate-uniform-0-0.01", "rate-ear-0-0.01",
    ]  # fmt: skip

    def row(arm, rate, loss):
        return {"arm": arm, "stage": "rate", "learning_rate": rate, "dev": [{"loss": loss, "tokens": 1}]}

    rows = [
        row("uniform", 1e-3, 2.0),
        row("uniform", 1e-2, 1.0),
        row("ear", 1e-3, 1.0),
        {k: v for k, v in row("ear", 1e-2, 0.0).items() if k != "dev"},
    ]
    assert chosen_rates(asked, rows) == {"uniform": 1e-2, "ear": 1e-3}
    assert chosen_rates(asked, rows[:3]) == {"uniform": 1e-2}
    study.write_text(study.read_text().replace('name = "ear"', 'name = "ear"\nrate_of = "uniform"'))
    asked = read_study(study)
    assert [run.arm for run in asked.rate_runs] == ["uniform", "uniform"]
    assert chosen_rates(asked, rows[:3]) == {"uniform": 1e-2, "ear": 1e-2}
    # An arm of another kind, such as full fine-tuning, has rates of its own, and as many.
    study.write_text(study.read_text().replace('rate_of = "uniform"', "learning_rates = [1e-5, 1e-4]"))
    asked = read_study(study)
    assert [run.key for run in asked.rate_runs] == [
        "rate-uniform-0-0.001", "rate-ear-0-1e-05", "rate-uniform-0-0.01", "rate-ear-0-0.0001",
    ]  # fmt: skip
    rows = [*rows[:2], row("ear", 1e-5, 3.0), row("ear", 1e-4, 2.0)]
    assert chosen_rates(asked, rows) == {"uniform": 1e-2, "ear": 1e-4}


def test_a_run_is_claimed_once_and_a_dead_claim_does_not_count(tmp_path):
    claim = tmp_path / "run.claim"
    with _claimed(claim) as first, _claimed(claim) as second:
        assert (first, second) == (True, False)
    assert not claim.exists()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    claim.write_text(json.dumps({"pid": child, "host": socket.gethostname()}))
    with _claimed(claim) as ours:
        assert ours
    claim.write_text(json.dumps({"pid": child, "host": "another"}))
    with _claimed(claim) as ours:
        assert not ours  # nobody here can tell whether it lives


def test_a_run_that_diverged_is_a_row_and_the_study_goes_on(tiny_model, clips, tmp_path, monkeypatch):
    from edgeqlora.research import run_arm
    from edgeqlora_jetson.errors import NotFiniteError

    def scored(learner, source, card, **options):
        raise NotFiniteError("the decoder answers NaN")

    monkeypatch.setattr(run_arm, "_scored", scored)
    settings = {"base_model": str(tiny_model), "train": str(clips), "output": str(tmp_path / "a"), "steps": 2}
    spec = {
        "settings": {**settings, "cache": "none", "language": "en"},
        "stage": "rate",
        "dev": "d",
        "test": "e",
        "keep": False,
    }
    row = run_arm.run_arm(spec)
    assert row["diverged"] == "the decoder answers NaN"
    assert "dev" not in row
    assert mean_loss(row.get("dev")) == float("inf")


ARMS = """
[[arm]]
name = "four"
[[arm]]
name = "eight"
bits = 8
[[arm]]
name = "sixteen"
method = "lora"
[[arm]]
name = "ia3"
method = "ia3"
[[arm]]
name = "prefix"
method = "prefix"
[[arm]]
name = "attention"
adapt = "attention"
[[arm]]
name = "planned"
plan = { mode = "uniform", mean_rank = 8, adapt = "encoder:attention" }
"""


@pytest.mark.slow
def test_methods_bits_and_placement_are_arms(study, command, tmp_path):
    head = study.read_text().partition("[[arm]]")[0].replace('primary = ["ear"]', "")
    study.write_text(head + ARMS)
    out = tmp_path / "study"
    code, said = command("ablate", study, "-o", out)
    assert code == 0, said
    arms = {arm["arm"]: arm for arm in json.loads((out / "conclusion.json").read_text())["arms"]}
    square, wide = 8 * (64 + 64), 8 * (64 + 128)  # parameters of an adapter of rank 8
    n_all = 2 * (4 * square + 2 * wide) + 2 * (8 * square + 2 * wide)
    assert {name: arm["trainable_parameters"] for name, arm in arms.items()} == {
        "four": n_all,
        "eight": n_all,
        "sixteen": n_all,
        "ia3": 2 * (64 + 64 + 128) + 2 * (4 * 64 + 128),
        "prefix": 16 * 2 * 2 * 64,
        "attention": 24 * square,
        "planned": 8 * square,
    }
    held = {name: arm["held_mib"] for name, arm in arms.items()}
    assert held["planned"] < held["attention"] < held["four"] < held["eight"] < held["sixteen"]
    assert held["ia3"] < held["prefix"] < held["sixteen"]
    size = {name: 2**20 * arm["adapter_mib"] for name, arm in arms.items()}
    for name, arm in arms.items():
        assert 4 * arm["trainable_parameters"] < size[name] < 4 * arm["trainable_parameters"] + 12_000, name
        assert arm["peak_rss_mib"] > 100
        assert f"| {name} |" in said
    assert "| model held, MiB | adapter, MiB |" in said


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("bits = 8", 'adapt = "encoder:x"'), "arm eight: adapt='encoder:x': 'encoder:x' is no part of a model"),
        (("bits = 8", 'bits = 8\nmethod = "lora"'), "arm eight: bits=8 with method='lora'"),
        (("plan = {", 'adapt = "encoder"\nplan = {'), "arm planned: a plan and adapt: put adapt into the plan"),
        (("plan = {", 'method = "ia3"\nplan = {'), "arm planned: a plan and method='ia3': ranks are of LoRA"),
        (("plan = {", 'bits = 8\nplan = { init = "qera",'), "arm planned: init='qera' makes up for the error of NF4"),
        (('adapt = "encoder:attention" }', 'adapt = "a:b" }'), "arm planned: adapt='a:b': 'a:b' is no part of a model"),
    ],
)
def test_arms_that_cannot_be(change, text, study, command, tmp_path):
    head = study.read_text().partition("[[arm]]")[0].replace('primary = ["ear"]', "")
    study.write_text(head + ARMS.replace(*change))
    code, said = command("ablate", study, "-o", tmp_path / "study")
    assert (code, text in said) == (2, True), said


def test_a_row_from_before_a_setting_was_there_counts_as_its_default(study, tmp_path):
    from edgeqlora.research.ablate import _defaults, _do, settings_of

    asked = read_study(study)
    run = next(iter(asked.final_runs({"uniform": 1e-3})))
    given = vars(settings_of(asked, run, None, tmp_path))
    old = {name: value for name, value in given.items() if value not in (None, "", []) and name != "adapt"}
    (tmp_path / "rows").mkdir()
    (tmp_path / "work").mkdir()
    row = tmp_path / "rows" / f"{run.key}.json"
    kept = {name: value for name, value in old.items() if name not in ("output", "base_model", "train")}
    row.write_text(json.dumps({"conditions": kept}))
    assert _defaults()["adapt"] == "all"
    _do(asked, run, tmp_path, {}, False, print)  # the row is there: nothing is trained
    row.write_text(json.dumps({"conditions": {**kept, "adapt": "encoder"}}))
    with pytest.raises(UserError, match="made with another adapt than arm uniform has now"):
        _do(asked, run, tmp_path, {}, False, print)


@pytest.mark.parametrize("name", ["demo-fresh", "tiny-methods", "tiny-rank4", "tiny-rank8"])
def test_the_kept_rows_of_our_studies_give_the_kept_tables(name, command):
    folder = Path(__file__).parents[2] / "benchmarks" / "ranks"
    code, said = command("ablate", folder / f"{name}.toml", "-o", folder / f"{name}.jsonl", "--only-report")
    assert (code, said.strip()) == (0, (folder / f"{name}.md").read_text(encoding="utf-8").strip())

"""The command line as a user meets it: exit codes, messages without tracebacks, and what is imported when."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgeqlora.cli.main import app
from edgeqlora.settings import PANELS, TrainSettings, read_settings

BUNDLE = Path(__file__).resolve().parents[2] / "jetson" / "fixtures" / "bundle"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "edgeqlora", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


def test_import_loads_no_torch_and_no_transformers():
    code = "import sys, edgeqlora, edgeqlora.cli.main; print([m for m in ('torch', 'transformers', 'peft', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_version_load_nothing_heavy():
    done = run("--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert "Fine-tune a speech model" in done.stdout
    heavy = ("| torch", "| transformers", "| numpy", "| pydantic")
    assert not [line for line in done.stderr.splitlines() if line.endswith(heavy)]
    assert run("--version").stdout.startswith("edgeqlora 0.")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "--train", "x", "-o", "y"], "base_model is not given: pass --base-model"),
        (["train", "-m", "x", "--train", "x", "-o", "y", "--speed-perturb", "fast"], "numbers separated by commas"),
        (["evaluate", "/nothing/here", "-d", "x"], "no model at '/nothing/here'"),
        (["merge", "/nothing/here", "-o", "y"], "not an adapter folder"),
        (["export", "x", "-o", "y", "--target", "jetson-nanoo"], "jetson-nano"),
        (["profiles", "show", "nothing"], "jetson-orin-nano"),
        (["data", "check"], "no data set to check"),
        (["data", "check", "/nothing/here.jsonl"], "here.jsonl"),
    ],
)
def test_bad_input_exits_2_with_one_message(arguments, text, tmp_path):
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "y").exists()


def test_config_file_is_written_and_flags_win(tmp_path: Path):
    path = tmp_path / "c.toml"
    flags = ["train", "-m", "m", "--train", "t", "-o", "o"]
    done = run(*flags, "--steps", "5", "--lr", "0.01", "--save-config", str(path))
    assert done.returncode == 0, done.stderr
    assert "learning_rate = 0.01" in path.read_text()
    assert f"Next: edgeqlora train --config {path}" in done.stderr
    done = run("train", "--config", str(path), "--epochs", "2", "--save-config", str(path))
    assert done.returncode == 0, done.stderr
    assert "epochs = 2" in path.read_text()
    assert "steps" not in path.read_text()
    done = run("train", "--config", str(path), "--batch-size", "0")
    assert done.returncode == 2
    assert "batch_size=0 is out of range" in done.stderr


def test_a_config_saved_elsewhere_means_the_same_paths(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["train", "-m", "owner/m", "--train", "t.jsonl", "-o", "my out", "--save-config", "sub folder/c.toml"]
    done = CliRunner().invoke(app, flags)
    assert done.exit_code == 0
    assert shlex.split(done.output.rsplit("Next: ", 1)[1]) == ["edgeqlora", "train", "--config", "sub folder/c.toml"]
    given = read_settings(Path("sub folder/c.toml"))
    assert (given["train"], given["output"]) == (str(tmp_path / "t.jsonl"), str(tmp_path / "my out"))
    assert given["base_model"] == "owner/m"


def test_every_help_is_shown_without_torch():
    code = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
from edgeqlora.cli.main import app

def walk(command, words):
    for name, child in command.commands.items():
        yield [*words, name]
        yield from walk(child, [*words, name]) if hasattr(child, "commands") else ()

calls = [[], *walk(get_command(app), [])]
for words in calls:
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, (words, done.output)
print(len(calls), [name for name in ("torch", "transformers", "peft", "onnxruntime") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    n_calls, loaded = done.stdout.split(" ", 1)
    assert int(n_calls) > 12
    assert loaded.strip() == "[]"


def test_the_flags_of_train_are_in_panels_with_their_defaults():
    text = (
        CliRunner()
        .invoke(app, ["train", "--help"], env={"COLUMNS": "600", "TERMINAL_WIDTH": "600", "NO_COLOR": "1"})
        .output
    )
    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    for panel, names in PANELS.items():
        assert f" {panel} " in text
        assert set(names) <= fields
    for default in ("Default: 20.0.", "Default: uniform:8.", "Default: no.", "Default: 5.0,20.0."):
        assert default in text


NASTY = "a\x1b]0;title\x07 \x9b2J'; $(touch x).wav"


def test_control_characters_of_data_are_not_printed(tmp_path, clips):
    """Names and texts of files go through data check's report, errors and the next command."""
    audio = tmp_path / NASTY
    audio.write_bytes((clips.parent / "0.wav").read_bytes())
    manifest = tmp_path / f"{NASTY}.jsonl"
    rows = [{"audio": NASTY, "text": "stop \x1b[2J now"}, {"audio": NASTY + "gone", "text": "stop"}]
    printed = []
    for n_rows, code in ((2, 1), (1, 0)):
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows[:n_rows]))
        done = run("data", "check", str(manifest))
        assert done.returncode == code
        printed += [done.stdout, done.stderr]
    assert "touch x" in printed[0]
    for text in printed:
        assert not [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
    assert printed[1].rstrip().endswith("Next: correct what the errors name, then check again")
    following = printed[3].rsplit("Next: ", 1)[1]
    assert shlex.split(following)[4:6] == [
        "--train",
        str(manifest).replace("\x1b", "\\u001b").replace("\x07", "\\u0007").replace("\x9b", "\\u009b"),
    ]


def test_bench_takes_its_output_by_the_short_flag(tmp_path):
    line = [
        "bench",
        str(BUNDLE),
        "--power",
        "none",
        "--repeats",
        "1",
        "--min-count",
        "1",
        "-o",
        str(tmp_path / "r.json"),
    ]
    assert CliRunner().invoke(app, line).exit_code == 0
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == "edgeqlora.report/2"


def test_data_check_finds_what_is_wrong_and_writes_json(clips, tmp_path):
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(clips.parent / row["audio"])
    rows[1]["audio"] = str(tmp_path / "gone.wav")
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("data", "check", str(tmp_path / "m.jsonl"), "-o", str(tmp_path / "report.json"))
    assert done.returncode == 1
    assert "gone.wav" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["findings"]


def test_profiles_are_listed_with_titles():
    done = run("profiles", "list")
    assert done.returncode == 0
    for name in ("cpu", "jetson-nano", "jetson-orin-nano"):
        assert any(line.startswith(name + " ") for line in done.stdout.splitlines())


def test_a_pipe_that_closes_early_is_no_error():
    command = f"{sys.executable} -m edgeqlora profiles show jetson-nano | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_disk_full_is_one_message(tmp_path, monkeypatch, capsys):
    import errno

    from edgeqlora.cli import main as cli

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "/out/model.safetensors")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "cannot write /out/model.safetensors: No space left" in capsys.readouterr().err


def test_torchaudio_that_does_not_match_torch_is_named_with_the_mend(tmp_path, tiny_model, clips):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text('raise OSError("libtorchaudio.so: undefined symbol: x")')
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    flags = ["--steps", "2", "--batch-size", "4", "--speed-perturb", "0.9", "--cache", "none", "--language", "en"]
    done = run(
        "train", "-m", str(tiny_model), "--train", str(clips), "-o", str(tmp_path / "a"), *flags, PYTHONPATH=paths
    )
    assert done.returncode == 2, done.stderr[-500:]
    assert "does not match torch" in done.stderr
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_name_without_a_network_fails_at_once(tmp_path, clips):
    import time

    start_s = time.monotonic()
    environment = {"HF_ENDPOINT": "https://hub.invalid", "HF_HOME": str(tmp_path)}
    done = run("data", "check", str(clips), "-m", "openai/whisper-tiny.en", **environment)
    assert done.returncode == 2, done.stderr[-500:]
    assert "the hub cannot be reached" in done.stderr
    assert time.monotonic() - start_s < 60  # the hub's own client goes on for minutes


def test_the_runners_flags_and_those_of_ssh_are_in_one_help():
    text = subprocess.run(
        [sys.executable, "-m", "edgeqlora", "bench", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "--host HOST" in text
    assert "--target-latency-ms" in text
    assert "usage: edgeqlora bench" in text


def test_the_bundle_alone_is_taken_out_of_what_goes_to_the_board():
    from edgeqlora.cli.board import _without_bundle
    from edgeqlora_jetson.__main__ import build_parser

    parser = build_parser("edgeqlora")
    for arguments, rest in (
        (["b", "--cache", "b", "--repeats", "2"], ["--cache", "b", "--repeats", "2"]),
        (["--cache", "b", "b", "--strict"], ["--cache", "b", "--strict"]),
    ):
        assert _without_bundle(parser, arguments, parser.parse_args(["bench", *arguments])) == rest


def test_an_abbreviated_flag_is_refused_by_the_board_commands():
    for arguments in (["bench", "b", "--o", "x"], ["bench", "b", "--host", "h", "--o", "x"], ["soak", "b", "--h", "1"]):
        done = subprocess.run([sys.executable, "-m", "edgeqlora", *arguments], capture_output=True, text=True)
        assert done.returncode == 2, arguments
        assert "unrecognized arguments" in done.stderr


def test_ssh_flags_are_in_the_help_with_a_host_too():
    done = subprocess.run(
        [sys.executable, "-m", "edgeqlora", "bench", "b", "--host", "h", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--identity" in done.stdout
    assert "--repeats" in done.stdout


def test_a_demo_of_an_unknown_model_names_those_that_are_there(tmp_path):
    arguments = ["demo", "-m", "conformer", "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "edgeqlora", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--model conformer: allowed is whisper or wav2vec2" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_demo_does_not_write_into_a_folder_of_others(tmp_path):
    (tmp_path / "report.json").write_text("mine")
    done = CliRunner().invoke(app, ["demo", "-o", str(tmp_path), "--overwrite"])
    assert "this program did not write it" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_training_does_not_replace_the_folder_of_its_config(tmp_path):
    (tmp_path / "card.json").write_text('{"schema": "edgeqlora.card/1"}')
    (tmp_path / "c.toml").write_text(f'base_model = "a/b"\ntrain = "t"\noutput = "{tmp_path}"\n')
    done = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "c.toml"), "--overwrite"])
    assert "it is or holds what this command reads" in str(done.exception)

"""The command line: exit codes, plain errors, what it prints."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from fakes.power import assert_no_energy, recorded_lines, write_tegrastats

import edgeqlora_jetson
from edgeqlora_jetson import __main__ as cli
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.bundle import folder as folder_module
from edgeqlora_jetson.files import write_bytes, write_text
from edgeqlora_jetson.pyz import command_name

ROOT = os.path.dirname(os.path.dirname(edgeqlora_jetson.__file__))


def run(*args, **settings):
    """Run the program: (exit code, stdout, stderr)."""
    env = dict(os.environ, PYTHONPATH=ROOT, OMP_NUM_THREADS="1")
    env.update(settings.pop("env", {}))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeqlora_jetson"] + list(args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        **settings,
    )
    out, err = process.communicate()
    return process.returncode, out.decode("utf-8"), err.decode("utf-8")


def clip(folder, i):
    return os.path.join(folder, "eval", "{:04d}.wav".format(i))


def test_info(fixture_folder, capsys):
    assert cli.main(["info", fixture_folder]) == 0
    out = capsys.readouterr().out
    assert "Bundle      tiny-fixture" in out
    assert "Gate        parity: passed" in out
    assert "Next: python3 -m edgeqlora_jetson transcribe speech.wav --bundle " in out


def test_transcribe_one_and_many(fixture_folder, expected, capsys):
    pytest.importorskip("onnxruntime")
    assert cli.main(["transcribe", clip(fixture_folder, 1), "--bundle", fixture_folder]) == 0
    assert capsys.readouterr().out == expected["texts"][1] + "\n"
    assert cli.main(["transcribe", clip(fixture_folder, 1), clip(fixture_folder, 2), "--bundle", fixture_folder]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == ["{}: {}".format(clip(fixture_folder, i), expected["texts"][i]) for i in (1, 2)]


def test_transcribe_json(fixture_folder, expected, capsys):
    pytest.importorskip("onnxruntime")
    assert cli.main(["transcribe", "--json", clip(fixture_folder, 2), "--bundle", fixture_folder]) == 0
    captured = capsys.readouterr()
    row = json.loads(captured.out)
    assert (row["text"], row["tokens"], row["window_s"]) == (expected["texts"][2], expected["tokens"][2], 1.0)
    assert row["total_ms"] > 0
    assert "ran into the limit of 10 tokens" in captured.err


def test_transcribe_goes_on_after_a_bad_file_and_exits_2(fixture_folder, expected, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    write_bytes(tmp_path / "notes.wav", b"shopping list: milk, bread, eggs")
    bad = str(tmp_path / "notes.wav")
    assert cli.main(["transcribe", bad, clip(fixture_folder, 1), "--bundle", fixture_folder]) == 2
    captured = capsys.readouterr()
    assert expected["texts"][1] in captured.out
    assert "error: {}: not audio, it looks like text ('shopping list: milk, bre')".format(bad) in captured.err


def test_long_files_say_that_they_are_cut(fixture_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    import numpy as np

    from edgeqlora_jetson.audio.wav import write_wav

    write_wav(tmp_path / "long.wav", np.random.RandomState(0).uniform(-0.5, 0.5, 40000))
    assert cli.main(["transcribe", str(tmp_path / "long.wav"), "--bundle", fixture_folder]) == 0
    assert (
        "2.5 s is longer than the largest window of 1 s: cut into 3 pieces at quiet places" in capsys.readouterr().err
    )


def test_bench_writes_a_report_and_a_table(fixture_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    output = str(tmp_path / "out" / "report.json")
    args = [
        "bench",
        fixture_folder,
        "--repeats",
        "2",
        "--min-count",
        "1",
        "--warmup",
        "1",
        "--limit",
        "2",
        "--output",
        output,
    ]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "single-stream: 4 runs of 2 clips (0.3 s of audio)" in out
    assert "Wrote " + output in out
    with open(output, encoding="utf-8") as file:
        assert len(json.load(file)["utterances"]) == 2


@pytest.mark.parametrize(
    ("power_mw", "reason"), [(0, "the sensor reads 0: VDD_IN"), (4046, "the sensor does not move")]
)
def test_bench_with_a_tegrastats_that_is_dead_or_stuck_is_not_valid(
    fixture_folder, tmp_path, monkeypatch, capsys, power_mw, reason
):
    pytest.importorskip("onnxruntime")
    line = recorded_lines()[21].replace("VDD_IN 4046mW", "VDD_IN {}mW".format(power_mw))
    program = write_tegrastats(str(tmp_path / "bin"), [line])
    monkeypatch.setenv("PATH", os.path.dirname(program) + os.pathsep + os.environ["PATH"])
    args = [
        "--power",
        "tegrastats",
        "--power-interval",
        "0.02",
        "--idle",
        "0.2",
        "--min-duration",
        "0.6",
        "--repeats",
        "1",
    ]
    assert cli.main(["bench", fixture_folder, "-o", str(tmp_path / "r.json")] + args) == 3
    captured = capsys.readouterr()
    assert "Energy            not measured (" + reason in captured.out
    assert "error: this run is not valid: no energy: " + reason in captured.err
    with open(str(tmp_path / "r.json"), encoding="utf-8") as file:
        report = json.load(file)
    assert report["validity"]["is_valid"] is False
    assert_no_energy(report["energy"], report["validity"]["problems"], reason)
    assert report["energy"]["energy_per_audio_s"]["value"] is None
    assert report["method"]["min_duration_s"] == 0.6


def test_bench_records_the_default_least_duration(fixture_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    args = ["bench", fixture_folder, "--power", "none", "--repeats", "1", "--min-count", "1", "-o"]
    assert cli.main(args + [str(tmp_path / "r.json")]) == 0
    with open(str(tmp_path / "r.json"), encoding="utf-8") as file:
        assert json.load(file)["method"]["min_duration_s"] == 0.0


def test_files_are_hashed_once_and_again_with_verify(bundle_copy, capsys, monkeypatch):
    hashed = []
    real = folder_module.sha256_file
    monkeypatch.setattr(folder_module, "sha256_file", lambda path: hashed.append(os.path.basename(path)) or real(path))

    def run_info(*flags):
        del hashed[:]
        code = cli.main(["info", bundle_copy] + list(flags))
        return code, set(hashed) - {"manifest.json"}

    every = {name.split("/")[-1] for name in Bundle.load(bundle_copy, verify=True).manifest["files"]}
    assert run_info() == (0, every)
    assert "all hashes as in the manifest" in capsys.readouterr().out
    assert run_info() == (0, set())
    assert "sizes and times as when all were hashed (--verify hashes them again)" in capsys.readouterr().out
    assert run_info("--verify") == (0, every)
    path = os.path.join(bundle_copy, "mel_filters.npy")
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(500)
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as old as before, but for the kernel's own time
    assert run_info()[0] == 2
    assert "mel_filters.npy: expected sha256" in capsys.readouterr().err


def test_a_bundle_on_a_read_only_disk_without_a_place_for_records(bundle_copy, tmp_path, monkeypatch):
    write_text(tmp_path / "file", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = sorted(os.listdir(bundle_copy))
    assert cli.main(["info", bundle_copy]) == 0
    assert cli.main(["info", bundle_copy]) == 0
    assert sorted(os.listdir(bundle_copy)) == before


def test_the_next_command_can_be_pasted(bundle_copy, tmp_path, monkeypatch, capsys):
    folder = str(tmp_path / "a b; c")
    os.rename(bundle_copy, folder)
    assert cli.main(["info", folder]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert shlex.split(line)[-2:] == ["--bundle", folder]
    monkeypatch.setattr("edgeqlora_jetson.pyz.find_pyz", lambda: os.path.join(folder, "x.pyz"))
    monkeypatch.chdir(folder)
    assert command_name() == "python3 x.pyz"
    monkeypatch.chdir(os.path.dirname(ROOT))
    assert shlex.split(command_name()) == ["python3", os.path.join(folder, "x.pyz")]


def test_control_characters_of_files_are_not_printed(fixture_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    name = str(tmp_path / "a\x1b]0;title\x07\x9b2J.wav")
    assert cli.main(["transcribe", name, "--bundle", fixture_folder]) == 2
    shutil.copyfile(clip(fixture_folder, 0), name)
    assert cli.main(["transcribe", name, name, "--bundle", fixture_folder]) == 0
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\x9b" not in text
        assert "a\\u001b]0;title\\u0007\\u009b2J.wav" in text


def test_bench_over_another_manifest(fixture_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    write_text(tmp_path / "m.jsonl", json.dumps({"audio": clip(fixture_folder, 0)}) + "\n")
    args = ["bench", fixture_folder, "--manifest", str(tmp_path / "m.jsonl"), "--output", str(tmp_path / "r.json")]
    assert cli.main(args) == 0
    assert "not measured (the clips have no references)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info"], "no bundle given: name the bundle folder"),
        (["info", "/no/such/bundle"], "error: /no/such/bundle: there is no such bundle folder"),
        (["bench", "BUNDLE", "--limit", "0"], "limit=0, at least 1 clip is needed (this manifest has 3)"),
        (["bench", "BUNDLE", "--manifest", "/no/m.jsonl"], "error: /no/m.jsonl: there is no such manifest"),
    ],
)
def test_bad_input_exits_2_without_traceback(fixture_folder, args, message):
    code, out, err = run(*[fixture_folder if arg == "BUNDLE" else arg for arg in args])
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_flipped_byte_exits_2(bundle_copy):
    with open(os.path.join(bundle_copy, "mel_filters.npy"), "r+b") as file:
        file.seek(500)
        file.write(b"x")
    code, _, err = run("info", bundle_copy)
    assert code == 2
    assert "mel_filters.npy: expected sha256" in err


def test_report_onto_a_folder_exits_2_and_leaves_nothing(fixture_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    code, _, err = run("bench", fixture_folder, "--repeats", "1", "--output", str(tmp_path))
    assert code == 2
    assert "cannot write {}: there is a folder of that name".format(tmp_path) in err
    assert os.listdir(str(tmp_path)) == []


def test_text_is_utf8_in_a_plain_c_locale(fixture_folder, expected):
    """Python 3.6 in a container: LANG=C means ASCII, and the text has an accent or a replacement character."""
    pytest.importorskip("onnxruntime")
    code, out, _ = run("transcribe", clip(fixture_folder, 2), "--bundle", fixture_folder, env={"LC_ALL": "C"})
    assert (code, out) == (0, expected["texts"][2] + "\n")
    assert any(ord(char) > 127 for char in out)


def test_ctrl_c_exits_130(fixture_folder, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_info", interrupt)
    assert cli.main(["info", fixture_folder]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_reader_that_went_away_is_no_drama(fixture_folder):
    read_end, write_end = os.pipe()
    os.close(read_end)
    env = dict(os.environ, PYTHONPATH=ROOT)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeqlora_jetson", "info", fixture_folder],
        stdout=write_end,
        stderr=subprocess.PIPE,
        env=env,
    )
    os.close(write_end)
    assert process.communicate()[1] == b""
    assert process.returncode == 141


def test_help_and_version_load_no_onnxruntime():
    code = (
        "import sys; from edgeqlora_jetson.__main__ import build_parser; build_parser().format_help(); "
        "sys.exit('onnxruntime' in sys.modules or 'soundfile' in sys.modules)"
    )
    assert subprocess.call([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=ROOT)) == 0
    assert run("--version")[1].strip() == "edgeqlora-jetson " + edgeqlora_jetson.__version__
    assert run()[0] == 2

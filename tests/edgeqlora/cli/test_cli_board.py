"""Commands about boards: what the runner is told, and that another machine's text cannot steer this terminal."""

from typer.testing import CliRunner

import edgeqlora.remote
from edgeqlora.cli.main import app
from edgeqlora.remote import HostResult, format_comparison


def test_engines_are_built_there_as_the_bench_will_ask_for_them(monkeypatch, tmp_path):
    calls = []

    def bench_hosts(bundle, hosts, arguments, output, **options):
        calls.append((hosts, arguments, options["before"]))
        return [HostResult(host=host, ok=True, report=None, report_path=None, error=None, copied_bytes=0,
                           skipped_bytes=0, seconds=1.0) for host in hosts]  # fmt: skip

    monkeypatch.setattr(edgeqlora.remote, "bench_hosts", bench_hosts)
    line = [
        "bench",
        str(tmp_path),
        "--host",
        "nano",
        "--host",
        "orin",
        "--build",
        "--precision",
        "fp32",
        "--cache",
        "c",
    ]
    assert CliRunner().invoke(app, line).exit_code == 0
    ((hosts, arguments, before),) = calls
    assert hosts == ["nano", "orin"]
    assert before == [["build", "--precision", "fp32", "--cache", "c"]]
    assert arguments[arguments.index("--precision") + 1] == "fp32"


def test_clips_of_this_machine_cannot_be_measured_on_another(tmp_path):
    line = ["bench", str(tmp_path), "--host", "nano", "--manifest", "clips.jsonl"]
    error = CliRunner().invoke(app, line).exception
    assert "--manifest names clips on this machine and --host measures on another" in str(error)


def test_control_characters_of_another_machine_are_not_printed():
    bad = HostResult(host="nano", ok=False, report=None, report_path=None, error="gone \x1b[2J", copied_bytes=0,
                     skipped_bytes=0, seconds=1.0)  # fmt: skip
    text = format_comparison([bad])
    assert "\x1b" not in text
    assert "gone" in text

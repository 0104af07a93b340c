"""Hosts as users write them, arguments that cannot travel, and which files a copy sends."""

from pathlib import Path

import pytest

from edgeqlora.errors import UserError
from edgeqlora.remote.bench import bench_hosts, check_runner_args
from edgeqlora.remote.farcall import printable
from edgeqlora.remote.hosts import Host, parse_host, parse_hosts
from edgeqlora.remote.preflight import check_machine
from edgeqlora.remote.transfer import plan_copy


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("nano", None, "nano", None),
        ("nano:2222", None, "nano", 2222),
        ("jetson@192.168.1.20", "jetson", "192.168.1.20", None),
        ("jetson@192.168.1.20:22", "jetson", "192.168.1.20", 22),
        ("fe80::1", None, "fe80::1", None),
        ("jetson@[fe80::1%eth0]:2222", "jetson", "fe80::1%eth0", 2222),
        ("[::1]", None, "::1", None),
    ],
)
def test_hosts_are_read(text: str, user: str | None, host: str, port: int | None):
    assert parse_host(text) == Host(text, user, host, port)


@pytest.mark.parametrize(
    "text", ["", "a b", "user@", "@host", "-oProxyCommand=x", "-x@host", "a@b@c", "..", "[::1", "a\nb"]
)
def test_what_is_no_host_is_refused(text: str):
    with pytest.raises(UserError, match=r"is not \[user@\]host\[:port\], for example jetson@192\.168\.1\.20"):
        parse_host(text)


@pytest.mark.parametrize("text", ["nano:0", "nano:65536", "nano:ssh", "nano:", "[::1]:x", "nano:\u00b2"])
def test_ports_have_a_range(text: str):
    with pytest.raises(UserError, match=r"port '.*', allowed: 1 to 65535"):
        parse_host(text)


def test_a_host_is_named_once():
    with pytest.raises(UserError, match="would both write the folder 'nano'"):
        parse_hosts(["nano", "tx2", "nano"])
    with pytest.raises(UserError, match="no host given"):
        parse_hosts([])


def test_folders_hold_no_path_and_commands_can_be_pasted():
    assert parse_host("jetson@[fe80::1%eth0]:2222").folder == "jetson@_fe80__1_eth0__2222"
    assert parse_host("jetson@nano:2222").command("ssh", "-o", "a b") == "ssh -o 'a b' -p 2222 jetson@nano"


@pytest.mark.parametrize("arg", ["--output", "--output=x.json", "--outp", "--manifest", "--mani=x", "--bundle"])
def test_options_that_mean_files_of_this_machine_are_refused(arg: str):
    with pytest.raises(UserError, match="cannot be given together with --host: the runner there uses the bundle's own"):
        check_runner_args(["bench", arg, "x"])


def test_the_command_is_bench_unless_named():
    assert check_runner_args([]) == ["bench"]
    assert check_runner_args(["--min-duration", "5"]) == ["bench", "--min-duration", "5"]
    assert check_runner_args(["soak", "--batch", "1"]) == ["soak", "--batch", "1"]


def test_a_bundle_without_runner_is_refused_before_any_connection(tmp_path: Path):
    fixture = Path(__file__).resolve().parents[2] / "jetson" / "fixtures" / "bundle"
    with pytest.raises(UserError, match=r"carries no runner \(edgeqlora-jetson\.pyz\): export it again"):
        bench_hosts(fixture, ["no-such-host.invalid"], [], tmp_path)


def test_plan_sends_what_is_missing_smallest_first_and_the_manifest_last():
    files = {
        name: {"bytes": n, "sha256": name}
        for name, n in (("big", 900), ("manifest.json", 1), ("here", 5), ("half", 700), ("other", 600))
    }
    missing = {"state": "missing", "part_bytes": 0, "part_sha256": None}
    survey = {
        "big": missing,
        "manifest.json": missing,
        "here": {"state": "same"},
        "half": {"state": "missing", "part_bytes": 512, "part_sha256": "same so far"},
        "other": {"state": "missing", "part_bytes": 512, "part_sha256": "of another file"},
    }
    pieces = plan_copy(files, survey, {"half": "same so far", "other": "its own"})
    assert [(piece.name, piece.offset) for piece in pieces] == [
        ("other", 0),
        ("half", 512),
        ("big", 0),
        ("manifest.json", 0),
    ]


def facts(**modules: str | None) -> dict:
    """What the helper says of a machine; a module with None is missing."""
    return {
        "system": "Linux",
        "machine": "aarch64",
        "python": "3.6.9",
        "free_bytes": 5_000_000_000,
        "is_writable": True,
        "existing": "/home/jetson",
        "modules": {
            name: {"version": version} if version else {"missing": f"ImportError: No module named {name}"}
            for name, version in modules.items()
        },
    }


def test_a_machine_that_can_run_it_is_one_line():
    machine = facts(numpy="1.13.3", onnxruntime="1.11.0", tensorrt=None)
    assert check_machine(machine, "nano", "python3", ["bench"]) == (
        "Linux aarch64, Python 3.6.9, numpy 1.13.3, onnxruntime 1.11.0, 5.0 GB free"
    )


@pytest.mark.parametrize(
    ("modules", "args", "message"),
    [
        ({"numpy": None, "onnxruntime": "1", "tensorrt": None}, [], r"nano: numpy cannot be imported by python3 there"),
        ({"numpy": None, "onnxruntime": "1", "tensorrt": None}, [], r"sudo apt-get install python3-numpy"),
        ({"numpy": "1", "onnxruntime": None, "tensorrt": None}, [], r"python3 -m pip install onnxruntime"),
        ({"numpy": "1", "onnxruntime": None, "tensorrt": None}, [], r"TensorRT comes with JetPack"),
        (
            {"numpy": "1", "onnxruntime": "1", "tensorrt": None},
            ["bench", "--runtime", "tensorrt"],
            r"no runtime \(tensorrt: ImportError: No module named tensorrt\)",
        ),
        (
            {"numpy": "1", "onnxruntime": None, "tensorrt": "8.2"},
            ["bench", "--runtime=onnxruntime"],
            r"no runtime \(onnxruntime: ImportError",
        ),
        ({}, [], r"did not say within 3 minutes which modules it has"),
    ],
)
def test_a_machine_that_cannot_is_told_what_to_install(modules: dict, args: list[str], message: str):
    with pytest.raises(UserError, match=message):
        check_machine(facts(**modules), "nano", "python3", args)


def test_tensorrt_alone_will_do_unless_onnxruntime_is_asked_for():
    machine = facts(numpy="1.13.3", onnxruntime=None, tensorrt="8.2.1.8")
    assert "tensorrt 8.2.1.8" in check_machine(machine, "nano", "python3", ["bench", "--runtime", "auto"])


def test_a_folder_that_cannot_be_written():
    machine = {**facts(numpy="1", onnxruntime="1", tensorrt=None), "is_writable": False, "existing": "/opt"}
    with pytest.raises(UserError, match="nano: /opt cannot be written there: choose another place with --remote-dir"):
        check_machine(machine, "nano", "python3", [])


def test_far_text_cannot_steer_this_terminal():
    assert printable("ok\t\u00e4 \x1b[2J\r") == "ok\t\u00e4 \ufffd[2J\ufffd"

"""The workstation's doctor: versions against ranges, the GPU against torch, NF4 really run."""

import platform

import pytest

from edgeqlora.doctor import (
    Gpu,
    examine_gpu,
    examine_nf4,
    examine_requirements,
    examine_workstation,
    nf4_error,
    read_driver,
    read_requirements,
)
from edgeqlora.profiles.load import load_profile
from edgeqlora_jetson.board.detect import detect_board, load_boards
from edgeqlora_jetson.doctor.board import export_command

GPU = Gpu(
    torch="2.9.0+cu126",
    error=None,
    built_for="12.6",
    names=["NVIDIA GeForce RTX 4070"],
    memory_mib=[12282.0],
    compute_capability=["8.9"],
    has_bf16=True,
    driver="560.35.03",
)


def test_versions_against_ranges() -> None:
    requirements = ["torch>=2.6", "transformers<6,>=5.10", "peft>=0.18", "tomli>=2; python_version < '3.8'"]
    installed = {"torch": "2.9.0+cu126", "transformers": "4.57.1", "peft": None, "tomli": None}
    findings = examine_requirements(requirements, installed.get)
    assert [finding.level for finding in findings] == ["problem", "problem", "ok"]
    assert findings[0].what == "transformers 4.57.1 is outside <6,>=5.10"
    assert findings[0].command == "python -m pip install 'transformers<6,>=5.10'"
    assert findings[1].what == "peft is not installed"
    # tomli is not needed on this Python, and torch's build tag is no other version.
    assert findings[2].what == f"Python {platform.python_version()}; 1 required packages in range"


def test_a_release_candidate_is_in_range() -> None:
    assert examine_requirements(["torch>=2.6"], {"torch": "2.10.0rc1"}.get)[0].level == "ok"


def test_what_this_environment_holds_is_in_range() -> None:
    requirements = read_requirements()
    assert any(line.startswith("transformers") for line in requirements)
    assert not any("extra" in line for line in requirements)
    findings = examine_requirements(requirements)
    assert [finding.level for finding in findings] == ["ok"], findings


def test_a_checkout_that_is_not_installed() -> None:
    finding = examine_requirements([])[0]
    assert (finding.level, finding.command) == ("warning", "python -m pip install -e ./jetson -e .")


def test_a_gpu_that_works() -> None:
    finding = examine_gpu(GPU)[0]
    assert finding.level == "ok"
    assert finding.what == (
        "NVIDIA GeForce RTX 4070, 12,282 MiB, compute capability 8.9; torch 2.9.0+cu126 for CUDA 12.6, driver 560.35.03"
    )


@pytest.mark.parametrize(
    ("changes", "level", "text", "command"),
    [
        (
            {"torch": None, "error": "OSError: libcudart"},
            "problem",
            "does not import: OSError: libcudart",
            "pip install",
        ),
        ({"names": [], "driver": None}, "note", "no NVIDIA GPU here", None),
        (
            {"names": [], "built_for": None},
            "warning",
            "built without CUDA, though there is a GPU (driver 560.35.03)",
            "--force-reinstall torch",
        ),
        ({"names": []}, "warning", "for CUDA 12.6 sees no GPU, though there is a driver", "nvidia-smi"),
        ({"memory_mib": [2002.0]}, "warning", "2,002 MiB", None),
        ({"has_bf16": False}, "ok", "RTX 4070", None),
    ],
)
def test_a_gpu_that_does_not(changes: dict, level: str, text: str, command: str | None) -> None:
    import dataclasses

    finding = examine_gpu(dataclasses.replace(GPU, **changes))[0]
    assert finding.level == level
    assert text in finding.what
    assert (finding.command is None) if command is None else (command in (finding.command or ""))


def test_the_driver_of_either_kernel_module(tmp_path) -> None:
    folder = tmp_path / "proc/driver/nvidia"
    folder.mkdir(parents=True)
    assert read_driver(str(tmp_path)) is None
    for text in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03  Fri Aug 16 21:39:15 UTC 2024\nGCC version: 12\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build  (root@x)\n",
    ):
        (folder / "version").write_text(text)
        assert read_driver(str(tmp_path)) == "560.35.03"


def test_nf4_runs_here_within_its_rounding() -> None:
    # 4 bits in blocks of 64: about 10 % of the weights' spread; 0 would mean that nothing was quantised.
    assert 0.01 < nf4_error("cpu") < 0.2
    assert examine_nf4("cpu").level == "ok"


def test_nf4_that_fails_says_which_method_still_works(monkeypatch) -> None:
    def fail(device: str) -> float:
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr("edgeqlora.doctor.nf4_error", fail)
    finding = examine_nf4("cuda")
    assert finding.level == "problem"
    assert finding.what.startswith("NF4 does not run on cuda with bitsandbytes")
    assert finding.what.endswith("RuntimeError: no kernel image is available")
    assert finding.means == "method qlora does not work here; lora and full do."


def test_nf4_that_gives_wrong_results(monkeypatch) -> None:
    for error in (0.9, float("nan")):
        monkeypatch.setattr("edgeqlora.doctor.nf4_error", lambda device, error=error: error)
        assert examine_nf4("cpu").level == "problem"


def test_the_whole_look_holds_the_runners_own() -> None:
    findings = examine_workstation()
    whats = [finding.what for finding in findings]
    assert any("torch" in what for what in whats)
    assert any(what.startswith("onnxruntime ") for what in whats)
    assert any("free on the disk" in what for what in whats)
    # Said once, and short: no list of versions, and nothing about boards that this machine is not.
    assert sum(what.startswith("Python ") for what in whats) == 1
    assert not any(what.startswith(("numpy", "No swap")) for what in whats)
    assert not any("jetson" in (finding.command or "") for finding in findings)
    assert all(finding.level != "problem" for finding in findings), findings


def test_the_commands_for_boards_work(tmp_path) -> None:
    """What the runner's doctor tells a user to type here, done with what is behind the command."""
    boards = load_boards()
    seen = set()
    for name, facts in boards.items():
        releases = [release["l4t"] for release in facts["jetpacks"]]
        for l4t in [*releases, "32.6.1", "35.4.1", "36.4.3", "39.2.1"]:
            for tensorrt in (None, "8.2.1", "8.5.2", "10.3.0", "10.16.2"):
                board = detect_board(str(tmp_path), {})._replace(id=name, l4t=l4t)
                words = export_command(board, tensorrt, boards).split()
                jetpack = words[words.index("--jetpack") + 1] if "--jetpack" in words else None
                seen.add(jetpack)
                assert load_profile(words[words.index("--target") + 1], jetpack).name == name
    assert {None, "4.6.6", "5.1.6", "6.0", "6.2.2", "7.2"} <= seen

"""The script of the GPU figures, as far as it runs without one: its parts, its table, and what it says is missing."""

import json
import subprocess
import sys
from pathlib import Path

import figures
import pytest
from gpu_machine import no_gpu

from edgeqlora.training.machine.gpu_memory import Sizes, n_parameters

HERE = Path(__file__).resolve().parent


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["figures.py"])
    return tmp_path


def test_a_training_part_runs_the_real_training(work: Path) -> None:
    sizes = Sizes(64, 2, 1, 128, 128, 700)
    found = figures.training("tiny", sizes, 1.0, work, steps=3)
    assert tuple(found) == figures.PARTS["train small, 2 s"].figures
    from edgeqlora.models.family import load_learner

    assert load_learner(str(work / "tiny")).model.num_parameters() == n_parameters(sizes)
    assert found["step"]["value"] > 0
    assert found["step"]["batch_size"] == 16
    assert found["clips_per_s"]["value"] == pytest.approx(16 / found["step"]["value"], rel=0.05)
    assert found["expected_vram"]["value"] > 0
    if no_gpu():
        assert found["peak_vram"]["value"] is None
        assert found["peak_vram"]["reason"]


def test_what_cannot_be_measured_is_null_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that fails, one that takes too long, one whose library is missing, one for which no time is left."""
    fails = [sys.executable, "-c", "print('first'); print('the last line'); raise SystemExit(1)"]
    real = figures.run_process
    part = figures.Part(lambda work: {}, ("step", "build"), lambda: None, 20)
    monkeypatch.setitem(figures.PARTS, "x", part)
    monkeypatch.setattr(figures, "run_process", lambda command, limit_s: real(fails, limit_s))
    assert figures.run_part("x", tmp_path, 60)["build"] == {"value": None, "reason": "the last line"}
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setitem(figures.PARTS, "x", part._replace(limit_s=0.2))
    monkeypatch.setattr(figures, "run_process", lambda command, limit_s: real(sleeps, limit_s))
    assert figures.run_part("x", tmp_path, 60)["step"]["reason"] == "not done in 0 s"
    assert figures.run_part("x", tmp_path, 5)["step"]["reason"] == "no time was left for it"
    monkeypatch.setitem(figures.PARTS, "x", part._replace(missing=lambda: "needs more"))
    assert figures.run_part("x", tmp_path, 60)["step"]["reason"] == "needs more"


@pytest.mark.skipif(no_gpu() is None, reason="says what a machine without a GPU gets")
def test_without_a_gpu_the_script_says_so_for_each_figure(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "figures.py", "--output", tmp_path], capture_output=True, text=True, check=True
    )
    assert "GPU  none: needs a CUDA GPU" in done.stdout
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["schema"] == "edgeqlora.gpu-figures/1"
    assert set(report["figures"]) == set(figures.PARTS)
    for name, part in report["figures"].items():
        assert tuple(part) == figures.PARTS[name].figures
        assert all(figure["value"] is None and figure["reason"].startswith("needs ") for figure in part.values())


def test_the_script_for_a_machine_says_what_it_lacks_and_would_install(tmp_path: Path) -> None:
    script = HERE / "run.sh"
    subprocess.run(["bash", "-n", script], check=True)
    environment = {
        "PATH": "/usr/bin:/bin",
        "OUT": str(tmp_path),
        "WHEELS": str(tmp_path),
        "SITE": str(tmp_path / "site"),
    }

    def plan(**more: str) -> str:
        done = subprocess.run(
            ["bash", script, "--dry-run"], env={**environment, **more}, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert "Lacks    nothing" in plan(PYTHON=sys.executable)
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without its packages
    bare.chmod(0o755)
    said = plan(PYTHON=str(bare))
    assert "Lacks    torch torchaudio transformers" in said
    assert "from the network into" in said
    assert plan(PYTHON=str(bare), WHEELS=str(tmp_path / "none")) == said
    (tmp_path / "one.whl").touch()
    assert f"Installs 1 wheels of {tmp_path} into {tmp_path / 'site'}" in plan(PYTHON=str(bare))
    assert not (tmp_path / "site").exists()

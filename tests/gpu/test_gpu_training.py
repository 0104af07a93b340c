"""QLoRA, scoring and merging on a CUDA GPU, held against the same commands on the processor.

Run by tests/gpu/run.sh. The embedded model is so small that a GPU is no faster with it: it is for the figures to be right.
"""

import itertools
import json
from pathlib import Path

import pytest
from gpu_machine import edgeqlora

from edgeqlora.demo import model_dir, speech_dir

# Each in a process of its own or with libraries' notices that only a GPU brings: no test of ours fails by them.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

DATA = ["-m", model_dir(), "--train", speech_dir() / "train.jsonl", "--window-s", "3", "--batch-size", "16"]
DEV = ["--dev", speech_dir() / "dev.jsonl", "--eval-samples", "32"]
TEST = ["--data", speech_dir() / "test.jsonl", "--limit", "40"]

SAME_TEXTS = 0.95
"""Share of texts that processor and GPU give alike, at least: where two tokens are as likely as one another but for
the rounding of sums, in another order on each, greedy decoding may go either way."""


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def share_alike(a: Path, b: Path) -> float:
    """Of the utterances of two evaluations."""
    texts = [
        [json.loads(line)["hypothesis"] for line in p.with_suffix(".jsonl").read_text().splitlines()] for p in (a, b)
    ]
    pairs = list(zip(*texts, strict=True))
    return sum(x == y for x, y in pairs) / len(pairs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapter of 80 steps with what `auto` takes on a GPU."""
    output = tmp_path_factory.mktemp("gpu") / "adapter"
    edgeqlora("train", *DATA, *DEV, "--steps", 80, "--eval-every", 40, "--lr", "3e-3", "-o", output)
    return output


def test_the_card_says_what_auto_took_and_the_loss_falls(trained: Path) -> None:
    import torch

    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    card = read(trained / "card.json")
    assert card["computed_with"] == {
        "device": torch.cuda.get_device_name(),
        "precision": "bf16" if has_bf16 else "fp16",
        "optimizer": "paged_adamw_8bit",
    }
    assert card["base_dtype"] == ("bfloat16" if has_bf16 else "float16")
    peak, energy = card["figures"]["peak_vram"], card["figures"]["energy"]
    assert 10 < peak["value"] < 4096
    assert energy["value"] is None or energy["value"] > 0
    logged = losses(trained)  # means of ten steps each
    assert len(logged) == 8
    assert logged[-1] < 0.6 * logged[0]


@pytest.mark.parametrize(
    ("precision", "optimizer", "tolerance"), [("fp32", "adamw", 0.01), ("bf16", "paged-adamw-8bit", 0.02)]
)
def test_ten_steps_have_the_loss_of_the_processor(
    precision: str, optimizer: str, tolerance: float, tmp_path: Path
) -> None:
    """The same adapters at the start, the same clips: what differs is the arithmetic."""
    steps = [*DATA, "--steps", 10, "--cache", tmp_path / "cache"]
    edgeqlora("train", *steps, "--precision", precision, "--optimizer", optimizer, "-o", tmp_path / "gpu")
    edgeqlora("train", *steps, "--precision", "fp32", "--optimizer", "adamw", "-o", tmp_path / "cpu", on_gpu=False)
    (on_gpu,), on_cpu = losses(tmp_path / "gpu"), losses(tmp_path / "cpu")
    assert len(on_cpu) == 10
    assert on_gpu == pytest.approx(sum(on_cpu) / 10, rel=tolerance)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not bit by bit as on a processor: attention adds up in another order each time."""
    from safetensors.torch import load_file
    from typer.testing import CliRunner

    from edgeqlora.cli.main import app
    from edgeqlora.training.run_log import RunLog

    run = ["train", *map(str, DATA), *map(str, DEV), "--steps", "20", "--eval-every", "10"]
    edgeqlora(*run, "-o", tmp_path / "straight")
    step_end = RunLog.on_step_end

    def stop_at_15(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 15:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "on_step_end", stop_at_15)
    CliRunner().invoke(app, [*run, "-o", str(tmp_path / "stopped")])
    assert (tmp_path / "stopped.partial" / "checkpoint-10" / "complete.json").exists()
    edgeqlora(*run, "-o", tmp_path / "stopped", "--resume")
    assert read(tmp_path / "stopped" / "card.json")["figures"]["wall_time"]["resumed"] is True
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "straight"), rel=0.03)
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("straight", "stopped"))
    far = sum(float((a[name] - b[name]).square().sum()) for name in a)
    size = sum(float(weight.square().sum()) for weight in a.values())
    assert far < 0.01 * size


def test_the_dry_run_says_how_much_of_the_gpu_it_needs(tmp_path: Path) -> None:
    said = edgeqlora("train", *DATA, *DEV, "--steps", 50, "-o", tmp_path / "adapter", "--dry-run")
    assert "of the GPU's memory: " in said
    assert "MiB for training, " in said
    assert "MiB for evaluation" in said


@pytest.mark.parametrize("what", ["base", "adapter"])
def test_evaluation_gives_the_texts_of_the_processor(what: str, trained: Path, tmp_path: Path) -> None:
    source = [model_dir(), "--window-s", "3"] if what == "base" else [trained]
    for on_gpu in (True, False):
        edgeqlora("evaluate", *source, *TEST, "-o", tmp_path / f"{on_gpu}.json", on_gpu=on_gpu)
    on_gpu, on_cpu = (read(tmp_path / f"{name}.json") for name in (True, False))
    assert share_alike(tmp_path / "True.json", tmp_path / "False.json") >= SAME_TEXTS
    assert on_gpu["perplexity"]["value"] == pytest.approx(on_cpu["perplexity"]["value"], rel=0.01)


def test_merging_gives_the_weights_of_the_processor(trained: Path, tmp_path: Path) -> None:
    """But for weights that lie between two 4-bit values: those may be rounded to either."""
    from safetensors.torch import load_file

    for on_gpu in (True, False):
        edgeqlora(
            "merge", trained, "--candidate", "dequantised", "--limit", 8, "-o", tmp_path / f"{on_gpu}", on_gpu=on_gpu
        )
        edgeqlora("evaluate", tmp_path / f"{on_gpu}", *TEST, "-o", tmp_path / f"{on_gpu}.json", on_gpu=False)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("True", "False"))
    assert a.keys() == b.keys()
    n_far = sum(int(((a[name] - b[name]).abs() > 1e-4).sum()) for name in a)
    assert n_far <= 1e-3 * sum(weight.numel() for weight in a.values())
    assert share_alike(tmp_path / "True.json", tmp_path / "False.json") >= SAME_TEXTS


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    """With the allocator held to less than the batch takes."""
    import torch

    from edgeqlora.data.manifest import load_for
    from edgeqlora.evaluation.recognise import Recogniser
    from edgeqlora.models.family import load_learner

    rows = load_for("", str(speech_dir() / "test.jsonl"), "", 64)
    learner = load_learner(str(model_dir()), device="cuda")
    learner.model.eval()

    def recognise(batch_size: int) -> tuple[list[str], list[str], Recogniser]:
        said: list[str] = []
        recogniser = Recogniser(learner, [30.0], say=said.append)
        texts = recogniser.recognise(rows, batch_size, with_losses=True).texts
        return texts, said, recogniser

    def peak_of(batch_size: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        recognise(batch_size)
        return torch.cuda.max_memory_reserved()

    small, large = peak_of(4), peak_of(64)
    assert large > 2 * small, "the batch must be what takes the memory"
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((small + large) / 2 / total)
    try:
        texts, said, recogniser = recognise(64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(said) == 1
    assert "does not hold 64 clips in a window of 30 s" in said[0]
    assert recogniser.most_clips[30.0] in (32, 16, 8, 4)
    alike = [a == b for a, b in zip(texts, recognise(64)[0], strict=True)]
    assert sum(alike) / len(alike) >= SAME_TEXTS


def test_the_gpus_energy_counter_runs() -> None:
    """Under load it rises between any two looks a second apart, by a power that a GPU can have."""
    import time

    import torch

    from edgeqlora_jetson.power import open_power_source

    source, scope, _ = open_power_source("nvml")
    assert source is not None
    assert scope is not None
    matrix = torch.ones(4096, 4096, device="cuda")
    source.start()
    looks = []
    for _ in range(3):
        until_s = time.monotonic() + 1
        while time.monotonic() < until_s:
            matrix = (matrix @ matrix).clamp(max=1)
            torch.cuda.synchronize()
        looks += source.poll()
    source.stop()
    rail = scope.rails[torch.cuda.current_device()]
    if source.kind == "counter":
        powers_w = [
            (b.counters_j[rail] - a.counters_j[rail]) / (b.time_s - a.time_s) for a, b in itertools.pairwise(looks)
        ]
    else:
        powers_w = [look.rails_mw[rail] / 1000 for look in looks]
    assert all(10 < power_w < 2000 for power_w in powers_w), powers_w

"""A bundle on a GPU of a workstation: onnxruntime's CUDA provider and TensorRT against the processor. Run by run.sh."""

import json
from pathlib import Path

import pytest
from gpu_machine import edgeqlora, no_cuda_provider

from edgeqlora.demo import model_dir, speech_dir

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

N_CLIPS = 16
QUICK = ["--repeats", 1, "--min-count", N_CLIPS, "--warmup", 2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "bundle"
    clips = ["-d", speech_dir() / "test.jsonl", "--eval-clips", N_CLIPS]
    edgeqlora("export", model_dir(), "-t", "workstation-gpu", "--window-s", 3, *clips, "-o", folder)
    return folder


@pytest.fixture(scope="module")
def texts(bundle: Path) -> list[str]:
    """What the processor says."""
    return hypotheses(measure(bundle, "--power", "none"))


def measure(bundle: Path, *flags: object) -> dict:
    """The report of a bench, which must be valid."""
    path = bundle.parent / "report.json"
    edgeqlora("bench", bundle, *QUICK, *flags, "-o", path)
    report = json.loads(path.read_text())
    assert report["validity"]["is_valid"], report["validity"]["problems"]
    return report


def hypotheses(report: dict) -> list[str]:
    return [row["hypothesis"] for row in report["utterances"]]


def n_alike(a: list[str], b: list[str]) -> int:
    return sum(x == y for x, y in zip(a, b, strict=True))


def test_onnxruntime_on_the_gpu_says_what_the_processor_says(bundle: Path, texts: list[str]) -> None:
    """onnxruntime computes products in TF32 on the GPU: a clip whose tokens are nearly as likely may differ."""
    if reason := no_cuda_provider():
        pytest.skip(reason)
    report = measure(bundle, "--provider", "cuda", "--power", "none")
    assert report["software"]["providers"][0] == "CUDAExecutionProvider"
    placed = report["software"]["node_placement"]
    assert all(nodes.get("CUDAExecutionProvider", 0) > 0 for nodes in placed.values()), placed
    assert n_alike(hypotheses(report), texts) >= N_CLIPS - 1


@pytest.mark.tensorrt
@pytest.mark.parametrize(("precision", "n_other"), [("fp32", 0), ("fp16", 1)])
def test_tensorrt_says_what_the_processor_says(
    precision: str, n_other: int, bundle: Path, texts: list[str], tmp_path: Path
) -> None:
    engines = ["--precision", precision, "--cache", tmp_path / "engines"]
    said = edgeqlora("build", bundle, *engines)
    assert "built in " in said
    report = measure(bundle, "--runtime", "tensorrt", *engines, "--power", "none")
    assert report["software"]["providers"] == ["TensorRT"]
    assert n_alike(hypotheses(report), texts) >= N_CLIPS - n_other
    assert "was there already" in edgeqlora("build", bundle, *engines)


def test_a_bench_counts_the_gpus_joules(bundle: Path) -> None:
    provider = [] if no_cuda_provider() else ["--provider", "cuda"]
    report = measure(bundle, *provider, "--power", "nvml", "--idle", 2, "--min-duration", 6)
    energy = report["energy"]
    assert energy["energy"]["value"] > 0
    assert energy["energy_scope"] == "gpu_board"
    assert 5 < energy["mean_power"]["value"] / 1000 < 2000

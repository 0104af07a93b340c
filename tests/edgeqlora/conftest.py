"""A tiny random Whisper with a real tokenizer, and four clips: enough to run every step for real in seconds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile


def _draw_nothing(stem: str, *arguments: object) -> Path:
    return Path(f"{stem}.png")


@pytest.fixture(autouse=True, scope="session")
def without_pictures() -> Iterator[Callable[..., Path]]:
    """Runs draw nothing, since each picture takes most of a second: tests that look at one ask for `with_pictures`."""
    from edgeqlora.lora import pictures

    save = pictures._save
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pictures, "_save", _draw_nothing)
        yield save


@pytest.fixture
def with_pictures(monkeypatch: pytest.MonkeyPatch, without_pictures: Callable[..., Path]) -> None:
    from edgeqlora.lora import pictures

    monkeypatch.setattr(pictures, "_save", without_pictures)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Whisper (64 wide, 2 + 2 layers) with the tokenizer and extractor of the embedded model."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    from edgeqlora.demo import model_dir
    from edgeqlora.models.family import load_processor

    folder = tmp_path_factory.mktemp("tiny")
    processor = load_processor(str(model_dir()))
    embedded = json.loads((model_dir() / "config.json").read_text())
    config = WhisperConfig(
        **{
            k: embedded[k]
            for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        },
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_mel_bins=80,
        max_target_positions=32,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(str(model_dir()))
    model.save_pretrained(folder)
    processor.save(folder)
    return folder


@pytest.fixture(scope="session")
def command() -> Callable[..., tuple[int, str]]:
    """What a user types after `edgeqlora`, run in this process: (exit code, all that it printed, error included)."""
    from typer.testing import CliRunner

    from edgeqlora.cli.main import app
    from edgeqlora.errors import UserError

    def run(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(done.exception, UserError):
            return 2, f"{done.output}error: {done.exception}"
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    return run


@pytest.fixture
def break_off(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train with these settings until Ctrl-C after step `after`: an unfinished run is left."""
    from edgeqlora.train import train
    from edgeqlora.training.run_log import RunLog

    def run(settings: object, after: int) -> None:
        step_end = RunLog.on_step_end

        def stop(self, args, state, control, **kwargs):
            step_end(self, args, state, control, **kwargs)
            if state.global_step == after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(RunLog, "on_step_end", stop)
            with pytest.raises(KeyboardInterrupt):
                train(settings, quiet=True)

    return run


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """manifest.jsonl of eight clips of 0.4 to 0.8 s, two texts told apart by pitch; beside it dev.jsonl of eight others."""
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, "dev", seed=2)
    return write_clips(folder, "manifest", seed=1)


def write_clips(folder: Path, name: str, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(8):
        seconds = 0.4 + 0.05 * i
        t = np.arange(int(16000 * seconds)) / 16000
        audio = 0.3 * np.sin(2 * np.pi * (300 if i % 2 else 1200) * t) + 0.01 * rng.standard_normal(t.size)
        file = f"{i}.wav" if name == "manifest" else f"{name}-{i}.wav"
        soundfile.write(folder / file, audio.astype(np.float32), 16000)
        text = "lights on" if i % 2 else "stop"
        rows.append({"audio": file, "text": text, "duration": round(seconds, 3), "speaker": f"{name}-{i}"})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

"""A model whose parts do not belong together is refused by every command, with the file and both numbers."""

import json
import shutil
from pathlib import Path

import pytest

from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.errors import UserError
from edgeqlora.models.family import load_learner, load_processor
from edgeqlora.models.parts import verify_base

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3038920\n"
OWN = "use the one that came with the model"


def edited(file, **changes):
    def edit(model: Path) -> None:
        content = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps({**content, **changes}))

    return edit


def written(file, text):
    return lambda model: (model / file).write_text(text)


def cut(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])


def added_token(model: Path) -> None:
    tokenizer = load_processor(str(model)).tokenizer
    tokenizer.add_tokens(["<|zh|>"])
    tokenizer.save_pretrained(model)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (edited("preprocessor_config.json", feature_size=128), f"preprocessor_config.json: feature_size=128, and config.json has num_mel_bins=80: {OWN}"),
        (edited("preprocessor_config.json", hop_length=80), "hop_length=80, and a Whisper model has 160"),
        (edited("preprocessor_config.json", n_fft=512), "n_fft=512, and a Whisper model has 400"),
        (edited("preprocessor_config.json", sampling_rate=8000), "sampling_rate=8000, and a Whisper model has 16000"),
        (added_token, "config.json says 512 token ids, and the tokenizer has 1 beyond them, such as 512 ('<|zh|>')"),
        (edited("generation_config.json", eos_token_id=[511, 504]), "ends a text with id 503, and generation_config.json or config.json with 511, 504"),
        (edited("generation_config.json", eos_token_id=[503, 999]), "names the token id 999, and the model has ids 0 to 511"),
        (edited("config.json", decoder_start_token_id=507), "<|startoftranscript|> is id 504 in the tokenizer and 507 in config.json"),
        (written("model.safetensors", POINTER), "model.safetensors is a Git LFS pointer, not the file itself (run: git lfs pull)"),
        (written("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
        (written("config.json", POINTER), "config.json is a Git LFS pointer"),
        (written("model.safetensors", ""), "model.safetensors is an empty file: copy or download it again"),
        (written("generation_config.json", " <!DOCTYPE html><html>404"), "generation_config.json is a web page"),
        (cut, "model.safetensors: these weights are damaged or cut short"),
        (written("tokenizer.json", '{"version": '), "tokenizer.json: this file is not JSON"),
        (written("model.safetensors.index.json", '{"weight_map": {"a": "model-1.safetensors"}}'), "1 of 1 shards of model.safetensors.index.json are not there"),
    ],
)  # fmt: skip
def test_a_spoiled_model_is_refused_alike_by_every_command(spoil, text, command, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_dir(), model)
    spoil(model)
    data = speech_dir() / "dev.jsonl"
    for arguments in (
        ("evaluate", model, "-d", data, "--limit", 2),
        ("data", "check", data, "-m", model),
        ("train", "-m", model, "--train", data, "-o", tmp_path / "a", "--steps", 2),
        ("export", model, "-d", data, "-o", tmp_path / "b"),
    ):
        code, said = command(*arguments)
        assert (code, text in said) == (2, True), f"{arguments[0]}: {said}"


def test_a_folder_without_generation_config_is_taken_by_every_command(command, tmp_path):
    """As transformers wrote it before 4.26: the settings of decoding are in config.json."""
    model, data = tmp_path / "model", speech_dir() / "test.jsonl"
    shutil.copytree(model_dir(), model)
    before = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").unlink()
    suppressed = [load_processor(str(model_dir())).text_ids("one")[0]]
    edited(
        "config.json",
        suppress_tokens=suppressed,
        begin_suppress_tokens=before["begin_suppress_tokens"],
        forced_decoder_ids=[[1, 511]],
    )(model)
    rules = load_processor(str(model)).label_rules()
    assert rules.suppressed_ids == frozenset(suppressed)
    spec = load_learner(str(model)).decoder([3.0], None, None).spec
    assert (spec["suppress_ids"], spec["begin_suppress_ids"]) == (suppressed, before["begin_suppress_tokens"])
    for arguments in (
        ("data", "check", data, "-m", model),
        (
            "train",
            "-m",
            model,
            "--train",
            data,
            "-o",
            tmp_path / "a",
            "--limit",
            4,
            "--steps",
            2,
            "--batch-size",
            2,
            "--dry-run",
        ),
        ("export", model, "-d", data, "--window-s", 3, "--eval-clips", 2, "-o", tmp_path / "bundle"),
    ):
        code, said = command(*arguments)
        assert code in (0, 1 if arguments[0] == "data" else 0), f"{arguments[0]}: {said}"
    decoder = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["decoder"]
    assert (decoder["suppress_ids"], decoder["prompt_ids"]) == (suppressed, [504, 511])


def test_every_end_token_of_a_list_is_obeyed_by_torch_and_bundle(command, tmp_path):
    model, data = tmp_path / "model", speech_dir() / "test.jsonl"
    shutil.copytree(model_dir(), model)
    edited("generation_config.json", eos_token_id=[511, 503])(model)
    wers = []
    for source in (model_dir(), model):
        code, said = command("evaluate", source, "-d", data, "--limit", 24, "--window-s", 3, "-o", tmp_path / "r.json")
        assert code == 0, said
        wers.append(json.loads((tmp_path / "r.json").read_text())["wer"]["basic-unicode"]["value"])
    assert wers[0] == wers[1]
    code, said = command("export", model, "-d", data, "--window-s", 3, "--eval-clips", 8, "-o", tmp_path / "bundle")
    assert code == 0, said
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["decoder"]["eos_ids"] == [511, 503]
    texts = []
    for source in (model, tmp_path / "bundle"):
        command(
            "evaluate",
            source,
            "-d",
            tmp_path / "bundle/eval/manifest.jsonl",
            "-o",
            tmp_path / "r.json",
            *([] if source.name == "bundle" else ["--window-s", 3]),
        )
        texts.append([json.loads(line)["hypothesis"] for line in (tmp_path / "r.jsonl").read_text().splitlines()])
    assert texts[0] == texts[1]


def test_a_base_is_verified_file_by_file(tmp_path):
    from edgeqlora.card import folder_sha256

    base = tmp_path / "base"
    base.mkdir()
    for name in ("model-1.bin", "model-2.bin", "config.json"):
        (base / name).write_text(name)
    card = {"base_model": "b", "parents": {"base_model": folder_sha256(base)}}
    verify_base(str(base), card)
    (base / "model.safetensors").write_text("preferred over what was trained on")
    with pytest.raises(UserError, match=r"model\.safetensors is not the base model .*had no such file"):
        verify_base(str(base), card)
    (base / "model.safetensors").unlink()
    (base / "model-2.bin").write_text("changed")
    with pytest.raises(UserError, match=r"model-2\.bin is not the base model that the adapter was trained on"):
        verify_base(str(base), card)
    (base / "model-2.bin").unlink()
    with pytest.raises(UserError, match=r"model-2\.bin is not the base model .*not there"):
        verify_base(str(base), card)

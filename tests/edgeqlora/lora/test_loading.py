"""Adapters of plain PEFT and of others' making: each kind is merged and scored right, or refused with the reason."""

import json
import re
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeqlora.errors import UserError
from edgeqlora.lora.loading import open_adapter
from edgeqlora.models.family import load_learner
from edgeqlora_export.whisper.windowed import windowed

INPUTS = {
    "input_features": torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0)),
    "decoder_input_ids": torch.tensor([[1, 2, 3, 400]] * 2),
}


def make_adapter(base: Path, folder: Path, binary: bool = False, **settings) -> torch.Tensor:
    """An adapter as PEFT makes and saves it, moved off its start; returns the logits of its model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = load_learner(str(base)).model
    model = get_peft_model(
        model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder, safe_serialization=not binary)
    return logits_of(model.eval())


def logits_of(model) -> torch.Tensor:
    with torch.no_grad(), windowed(model, 1.0):
        return (model.get_base_model() if hasattr(model, "peft_config") else model)(**INPUTS).logits


@pytest.fixture(scope="module")
def plain(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    make_adapter(tiny_model, folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"bias": "lora_only"},
        {"modules_to_save": ["conv1"]},
        {"modules_to_save": ["proj_out"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "proj_out"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"binary": True},
    ],
    ids=lambda settings: "-".join(f"{value}" for value in settings.values()),
)
def test_variants_of_peft_are_merged_right(settings, tiny_model, command, tmp_path):
    trained = make_adapter(tiny_model, tmp_path / "adapter", **settings)
    code, said = command("merge", tmp_path / "adapter", "-o", tmp_path / "merged")
    assert code == 0, said
    assert "merged model (original base)" in said
    merged = logits_of(load_learner(str(tmp_path / "merged")).model.eval())
    assert torch.allclose(merged, trained, atol=1e-4)
    assert not torch.allclose(merged, logits_of(load_learner(str(tiny_model)).model.eval()), atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "edits the base model in a way that the folder does not hold"),
        ({"init_lora_weights": "loftq"}, "save it as plain LoRA"),
    ],
)
def test_a_start_that_the_folder_does_not_hold_is_refused(settings, text, plain, command, tmp_path):
    shutil.copytree(plain, tmp_path / "adapter")
    config = json.loads((plain / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    code, said = command("merge", tmp_path / "adapter", "-o", tmp_path / "merged")
    assert (code, text in said) == (2, True), said


def test_an_adapter_without_a_card_is_scored_on_its_own_base_and_on_nf4_if_asked(
    plain, tiny_model, clips, command, tmp_path
):
    report = tmp_path / "r.json"
    found = {}
    for name, flags in {"own": [], "nf4": ["--method", "qlora"]}.items():
        code, said = command("evaluate", plain, "-d", clips, "--window-s", 1, "-o", report, *flags)
        assert code == 0, said
        found[name] = json.loads(report.read_text())
        assert found[name]["base"]["model"] == str(tiny_model)
        assert found[name]["base"]["held_in"] in said
    assert found["own"]["base"]["precision"] == "float32"
    assert found["nf4"]["base"]["precision"] == "nf4"
    assert found["own"]["perplexity"]["value"] != found["nf4"]["perplexity"]["value"]
    assert command("merge", plain, "-o", tmp_path / "merged")[0] == 0
    assert command("evaluate", tmp_path / "merged", "-d", clips, "--window-s", 1, "-o", report)[0] == 0
    merged = json.loads(report.read_text())
    assert merged["perplexity"]["value"] == pytest.approx(found["own"]["perplexity"]["value"], rel=1e-4)
    code, said = command("merge", plain, "-o", tmp_path / "both", "--method", "qlora", "--dev", clips)
    assert code == 0, said
    assert sorted(json.loads((tmp_path / "both" / "card.json").read_text())["candidates"]) == [
        "dequantised",
        "original",
    ]


def test_a_start_that_edits_the_base_is_not_for_nf4(tiny_model, clips, command, tmp_path):
    make_adapter(tiny_model, tmp_path / "pissa", init_lora_weights="pissa")
    assert command("evaluate", tmp_path / "pissa", "-d", clips, "--window-s", 1)[0] == 0
    code, said = command("evaluate", tmp_path / "pissa", "-d", clips, "--method", "qlora")
    assert (code, "init_lora_weights='pissa'" in said) == (2, True), said


def rewritten(change):
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return edit


def with_added_token(folder: Path) -> None:
    from edgeqlora.models.family import load_processor

    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = load_processor(base).tokenizer
    tokenizer.add_tokens(["<|laugh|>"])
    tokenizer.save_pretrained(folder)


def configured(**changed):
    def edit(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changed}))

    return edit


PROMPTS = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "task_type": "SEQ_2_SEQ_LM"}


FIRST = "base_model.model.model.decoder.embed_tokens.weight"


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (rewritten(lambda w: {k: v for k, v in w.items() if ".decoder." not in k}), "16 of 24 weights that it needs are not in the file"),
        (rewritten(lambda w: {**w, "base_model.model.extra.weight": torch.ones(2)}), "1 of 25 weights in the file are of no use in the model (such as base_model.model.extra.weight)"),
        (rewritten(lambda w: {f"text_model.{k}": v for k, v in w.items()}), "24 of 24 weights that it needs are not in the file (such as base_model.model."),
        (rewritten(lambda w: {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in w.items()}), "every lora_B of this adapter is 0"),
        (rewritten(lambda w: {k: v * float("nan") if "layers.1.self_attn.q_proj.lora_A" in k else v for k, v in w.items()}), "2 of 24 weights hold NaN or infinity"),
        (rewritten(lambda w: {**w, FIRST: torch.zeros(513, 64), "base_model.model.proj_out.weight": torch.zeros(513, 64)}), f"{FIRST} has shape (513, 64) in the adapter and (512, 64) in the model (2 of 26 weights differ): probably another base model, or tokens were added"),
        (configured(target_modules=["qkv"]), "PEFT cannot put this adapter on "),
        (configured(**PROMPTS), "PREFIX_TUNING cannot be merged into weights: allowed are LoRA and its kin"),
        (configured(peft_type="NEW_LORA"), "adapter_config.json cannot be read by PEFT: "),
        (configured(r=8), "has shape (4, 64) in the adapter and (8, 64) in the model"),
        (with_added_token, "its tokenizer has 513 tokens, the base model's 512, and 1 differ: '<|laugh|>' is 512 there and absent here"),
        (lambda folder: (folder / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"), "adapter_model.safetensors is a Git LFS pointer"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no weights: needed is adapter_model.safetensors or adapter_model.bin"),
    ],
    ids=["half", "unexpected", "of-another-architecture", "zero", "nan", "embedding", "targets", "prompts", "kind", "rank", "tokenizer", "pointer", "gone"],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused_by_merge_and_evaluate(spoil, text, plain, clips, command, tmp_path):
    shutil.copytree(plain, tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    for arguments in (
        ("merge", tmp_path / "adapter", "-o", tmp_path / "merged"),
        ("evaluate", tmp_path / "adapter", "-d", clips),
    ):
        code, said = command(*arguments)
        assert (code, text in said) == (2, True), said
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("rename", "part"),
    [
        (lambda k: f"_orig_mod.{k}", "_orig_mod"),
        (lambda k: k.replace("base_model.model.", "base_model.model.module.", 1), "module"),
        (lambda k: k.replace(".self_attn", "._fsdp_wrapped_module.self_attn"), "_fsdp_wrapped_module"),
        (lambda k: k.replace(".weight", ".default.weight"), "default"),
    ],
)
def test_names_that_a_wrapper_changed_are_corrected_and_said(rename, part, plain, command, tmp_path):
    shutil.copytree(plain, tmp_path / "adapter")
    rewritten(lambda w: {rename(k): v for k, v in w.items()})(tmp_path / "adapter")
    for source in (plain, tmp_path / "adapter"):
        code, said = command("merge", source, "-o", tmp_path / f"merged-{source.parent.name}", "--overwrite")
        assert code == 0, said
    assert f"names of weights hold {part}, put there by a wrapper" in said
    one, other = (
        load_file(tmp_path / f"merged-{s.parent.name}" / "model.safetensors") for s in (plain, tmp_path / "adapter")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_merge_that_changes_the_answers_is_refused(plain, command, tmp_path, monkeypatch):
    from peft import LoraModel

    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self: self.unload())  # merged as nothing
    code, said = command("merge", plain, "-o", tmp_path / "merged")
    assert code == 2
    assert "the merged model (original) answers otherwise than the adapter beside its base" in said
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_peft_cannot_merge_is_refused(plain, command, tmp_path, monkeypatch):
    from peft import LoraModel

    def refuse(self):
        raise NotImplementedError("merging is not implemented for this layer")

    monkeypatch.setattr(LoraModel, "merge_and_unload", refuse)
    code, said = command("merge", plain, "-o", tmp_path / "merged")
    assert code == 2
    assert "PEFT cannot merge this adapter: merging is not implemented for this layer" in said
    assert not (tmp_path / "merged").exists()


def test_one_model_is_in_memory_at_a_time(plain, clips, command, tmp_path, monkeypatch):
    from edgeqlora.lora import loading
    from edgeqlora.models import family

    alive: list[weakref.ref] = []
    load = family.load_learner

    def counted(*arguments, **options):
        assert not [model for model in alive if model() is not None], "another model is still in memory"
        learner = load(*arguments, **options)
        alive.append(weakref.ref(learner.model))
        return learner

    monkeypatch.setattr(family, "load_learner", counted)
    monkeypatch.setattr(loading, "load_learner", counted)
    code, said = command("merge", plain, "-o", tmp_path / "merged", "--method", "qlora", "--dev", clips)
    assert code == 0, said
    assert len(alive) == 4  # of each of two candidates: the base with its adapter, and what was written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "adapter_config.json holds no object: save the adapter again"),
        ('{"peft_type": "LORA", "r": "four"}', "r is 'four', allowed: a whole number; save it again"),
        ('{"peft_type": "LORA", "r": true}', "r is True, allowed: a whole number"),
        ('{"peft_type": "LORA", "base_model_name_or_path": 3}', "base_model_name_or_path is 3, allowed: a text"),
        ('{"peft_type": "LORA", "r": 4}', "does not say which base model it belongs to: pass --base-model"),
    ],
)
def test_what_adapter_config_says_has_its_types(tmp_path, content, message):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        open_adapter(tmp_path)

"""Prefix tuning: what the decoder reads in front of the text, in training, decoding and scoring, and what cannot be done."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from edgeqlora.demo import model_dir
from edgeqlora.errors import UserError
from edgeqlora.lora.loading import load_adapted, open_adapter
from edgeqlora.lora.methods.prefix import prefix_config, with_prefix
from edgeqlora.models.family import load_learner
from edgeqlora_export.whisper.decoding import torch_greedy
from edgeqlora_export.whisper.windowed import windowed

INPUTS = {
    "input_features": torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0)),
    "decoder_input_ids": torch.tensor([[1, 2, 3, 400], [1, 2, 8, 9]]),
}


@pytest.fixture
def prefixed(tiny_model):
    """A learner of a tiny model with a random prefix of 3, its own logits, and those without the prefix."""
    learner = load_learner(str(tiny_model))
    learner.model.eval()
    base = logits_of(learner.model)
    torch.manual_seed(3)
    learner.model = with_prefix(learner, 3)
    learner.model.eval()
    return learner, base


def logits_of(model, **changed):
    base = getattr(model, "get_base_model", lambda: model)()
    with torch.no_grad(), windowed(base, 1.0):
        return base(**{**INPUTS, **changed}).logits


def test_peft_alone_does_not_take_a_speech_model(tiny_model):
    """Why the decoder gets the prefix from here: when this fails, PEFT can do it, and its own way is better."""
    from peft import PrefixTuningConfig, get_peft_model

    for task in ("SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION"):
        model = get_peft_model(
            load_learner(str(tiny_model)).model, PrefixTuningConfig(task_type=task, num_virtual_tokens=4)
        )
        with (
            pytest.raises(ValueError, match="You have to provide either input_ids or inputs_embeds"),
            windowed(model, 1.0),
        ):
            model(**INPUTS)


def test_attention_is_over_prefix_and_text_and_the_text_keeps_its_places(prefixed):
    """The first decoder layer's self-attention, by hand: softmax over keys of prefix and text, causal over the text."""
    learner, base = prefixed
    layer = learner.model.get_base_model().model.decoder.layers[0]
    heard = {}
    hooks = [
        layer.self_attn.register_forward_hook(
            lambda module, args, given, out: heard.update(x=(args or (given["hidden_states"],))[0], out=out[0]),
            with_kwargs=True,
        ),
    ]
    with_it = logits_of(learner.model)
    hooks[0].remove()
    attention, x = layer.self_attn, heard["x"]
    table = learner.model.prompt_encoder["default"].embedding.weight.detach()  # (3, layers x 2 x width)
    keys, values = table.view(3, 2, 2, 64)[:, 0].unbind(1)

    def heads(tensor):
        return tensor.view(*tensor.shape[:-1], 2, 32).transpose(-2, -3)

    k = heads(torch.cat([keys.expand(2, 3, 64), attention.k_proj(x)], 1))
    v = heads(torch.cat([values.expand(2, 3, 64), attention.v_proj(x)], 1))
    scores = heads(attention.q_proj(x)) @ k.transpose(-1, -2) / 32**0.5
    mask = torch.cat([torch.zeros(4, 3), torch.full((4, 4), -torch.inf).triu(1)], 1)
    by_hand = ((scores + mask).softmax(-1) @ v).transpose(1, 2).reshape(2, 4, 64)
    assert torch.allclose(heard["out"], attention.out_proj(by_hand), atol=1e-5)
    decoder = learner.model.get_base_model().model.decoder
    places = decoder.embed_tokens(INPUTS["decoder_input_ids"]) + decoder.embed_positions.weight[:4]
    assert torch.allclose(x, layer.self_attn_layer_norm(places), atol=1e-5)
    assert (with_it - base).abs().max() > 0.01
    later = INPUTS["decoder_input_ids"].clone()
    later[:, 3] = 7
    changed = logits_of(learner.model, decoder_input_ids=later)
    assert torch.allclose(changed[:, :3], with_it[:, :3], atol=1e-5), "text hears what comes after it"


def test_greedy_decoding_with_the_cache_says_what_the_whole_pass_says(prefixed):
    learner, _ = prefixed
    spec = learner.decoder([1.0], "en", None).spec
    tokens, _ = torch_greedy(learner.model.get_base_model(), INPUTS["input_features"], spec, 8)
    for row, found in enumerate(tokens):
        ids = list(spec["prompt_ids"])
        for step, token in enumerate(found):
            logits = logits_of(
                learner.model,
                input_features=INPUTS["input_features"][row : row + 1],
                decoder_input_ids=torch.tensor([ids]),
            )[0, -1]
            logits[spec["suppress_ids"]] = -torch.inf
            if step == 0:
                logits[spec["begin_suppress_ids"]] = -torch.inf
            assert int(logits.argmax()) == token
            ids.append(token)


def test_every_layer_gets_a_gradient(prefixed):
    learner, _ = prefixed
    with windowed(learner.model, 1.0):
        learner.model(**INPUTS).logits.logsumexp(-1).sum().backward()
    weight = learner.model.prompt_encoder["default"].embedding.weight
    assert weight.grad.view(3, 2, 2, 64).abs().sum(-1).min() > 0
    assert [name for name, p in learner.model.named_parameters() if p.requires_grad] == [
        "prompt_encoder.default.embedding.weight"
    ]


@pytest.mark.parametrize("bits", [None, 4])
def test_the_line_from_training_to_scoring(bits, tiny_model, clips, command, tmp_path):
    line = ["train", "-m", tiny_model, "--train", clips, "--dev", clips.with_name("dev.jsonl"), "--cache", "none"]
    line += ["--window-s", 1, "--method", "prefix", "--prefix-tokens", 5, "--batch-size", 4, "--lr", 0.1]
    code, said = command(
        *line, "-o", tmp_path / "a", "--steps", 8, "--eval-every", 4, *(["--bits", bits] if bits else [])
    )
    assert code == 0, said
    assert "edgeqlora evaluate" in said.splitlines()[-1]
    card = json.loads((tmp_path / "a/card.json").read_text())
    assert card["figures"]["trainable_parameters"]["value"] == 5 * 2 * 2 * 64
    weights = load_file(tmp_path / "a/adapter_model.safetensors")
    assert {name: tuple(value.shape) for name, value in weights.items()} == {"prompt_embeddings": (5, 2 * 2 * 64)}
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"
    dev = clips.with_name("dev.jsonl")
    code, said = command("evaluate", tmp_path / "a", "-d", dev, "-o", tmp_path / "a.json")
    assert code == 0, said
    assert "Next: train with qlora, lora or ia3 for a board" in said
    report = json.loads((tmp_path / "a.json").read_text())
    # What training measured with the prefix that it had in memory.
    assert torch.tensor(report["perplexity"]["value"]).log().item() == pytest.approx(
        card["dev_loss"]["value"], abs=1e-4
    )
    code, said = command("evaluate", tiny_model, "-d", dev, "--window-s", 1, "-o", tmp_path / "base.json")
    assert json.loads((tmp_path / "base.json").read_text())["perplexity"]["value"] > 1.1 * report["perplexity"]["value"]
    learner = load_adapted(open_adapter(tmp_path / "a"), "quantised" if bits else "original")
    assert isinstance(learner.model, PeftModel)
    for arguments, text in (
        (("merge", tmp_path / "a", "-o", tmp_path / "m"), "there is nothing to merge, and nothing to export"),
        (("export", tmp_path / "a", "-o", tmp_path / "b", "-d", clips), "and no graph takes them"),
    ):
        code, said = command(*arguments)
        assert (code, text in said, "train with qlora, lora or ia3" in said) == (2, True, True), said
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "b").exists()


def test_a_run_that_broke_off_ends_with_the_same_prefix(tiny_model, clips, tmp_path, break_off):
    from edgeqlora.settings import make_settings
    from edgeqlora.train import train

    given = {"base_model": str(tiny_model), "train": str(clips), "method": "prefix", "steps": 6, "batch_size": 4}
    given |= {"window_s": "1", "cache": "none", "eval_every": 2, "dev": str(clips.with_name("dev.jsonl"))}
    train(make_settings({**given, "output": str(tmp_path / "straight")}))
    settings = make_settings({**given, "output": str(tmp_path / "broken")})
    break_off(settings, after=5)
    train(settings, resume=True)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("straight", "broken"))
    assert torch.equal(one["prompt_embeddings"], other["prompt_embeddings"])


def test_what_cannot_be_is_refused(clips, tiny_model, command, tmp_path):
    ctc = model_dir().parent / "model-wav2vec2"
    with pytest.raises(UserError, match="method='prefix' needs a decoder that keeps keys and values of the text"):
        prefix_config(load_learner(str(ctc)), 4)
    line = ["train", "--train", clips, "-o", tmp_path / "a", "--cache", "none", "--steps", 1, "-m"]
    for flags, text in (
        ([ctc, "--method", "prefix"], "this model has none: allowed are qlora, lora, ia3 and full"),
        ([tiny_model, "--prefix-tokens", 4], "prefix_tokens=4 is of method prefix, and method='qlora': leave it out"),
        (
            [tiny_model, "--method", "prefix", "--prefix-tokens", 0],
            "prefix_tokens=0 is out of range: allowed is 1 to 256",
        ),
        ([tiny_model, "--method", "prefix", "--gradient-checkpointing"], "which needs the cache that it drops"),
        (
            [tiny_model, "--method", "prefix", "--adapt", "decoder"],
            "adapt='decoder' with method='prefix': allowed with",
        ),
        (
            [tiny_model, "--method", "prefix", "--ranks", "uniform:2"],
            "ranks='uniform:2' is of LoRA, and method='prefix'",
        ),
    ):
        code, said = command(*line, *flags)
        assert (code, text in said) == (2, True), said
    assert not (tmp_path / "a").exists()

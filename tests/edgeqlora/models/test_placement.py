"""Which linears get adapters: the grammar, and what it means for a model of each family."""

import json

import pytest

from edgeqlora.demo import model_dir
from edgeqlora.errors import UserError
from edgeqlora.lora.adapters import adapted_linears
from edgeqlora.models.family import load_learner
from edgeqlora.models.placement import parse_placement, place

GROUPS = {"encoder": ["e.0.q_proj", "e.0.fc1"], "cross": ["d.0.x.v_proj"]}
ROLES = {"q_proj": "query", "v_proj": "value", "fc1": "inner"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("all", [(None, None)]),
        ("attention", [(None, "attention")]),
        ("encoder", [("encoder", None)]),
        ("encoder:feed-forward, cross", [("encoder", "feed-forward"), ("cross", None)]),
    ],
)
def test_a_placement_is_groups_and_kinds(text, parts):
    assert parse_placement(text) == parts


@pytest.mark.parametrize("text", ["", "encoder:", "encoder:atention", ":attention", "all,", "encoder:attention:x"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(
        UserError, match="is no part of a model; give all, attention, feed-forward, a group of the model"
    ):
        parse_placement(text)


def test_parts_are_added_up_and_a_linear_counts_once():
    assert place(GROUPS, ROLES, "all") == GROUPS
    assert place(GROUPS, ROLES, "attention") == {"encoder": ["e.0.q_proj"], "cross": ["d.0.x.v_proj"]}
    assert place(GROUPS, ROLES, "encoder,encoder:attention") == {"encoder": ["e.0.q_proj", "e.0.fc1"]}
    with pytest.raises(
        UserError, match=r"adapt='lower': 'lower' is no group of this model, allowed are encoder, cross"
    ):
        place(GROUPS, ROLES, "lower")
    with pytest.raises(UserError, match="cross has no feed-forward linears in this model; leave that part out"):
        place(GROUPS, ROLES, "encoder,cross:feed-forward")


@pytest.mark.parametrize(
    ("model", "adapt", "per_layer"),
    [
        ("model", "feed-forward", {"encoder": ["fc1", "fc2"], "decoder": ["fc1", "fc2"]}),
        ("model", "cross:attention", {"cross": ["k_proj", "out_proj", "q_proj", "v_proj"]}),
        ("model-wav2vec2", "upper:feed-forward", {"upper": ["intermediate_dense", "output_dense"]}),
        ("model-wav2vec2", "lower:attention", {"lower": ["k_proj", "out_proj", "q_proj", "v_proj"]}),
    ],
)
def test_every_family_tells_attention_from_feed_forward(model, adapt, per_layer):
    learner = load_learner(str(model_dir().parent / model))
    whole, found = adapted_linears(learner), adapted_linears(learner, adapt)
    assert {group: sorted({name.rpartition(".")[2] for name in names}) for group, names in found.items()} == per_layer
    for group, names in found.items():
        assert names == [name for name in whole[group] if name.rpartition(".")[2] in per_layer[group]]


@pytest.mark.parametrize("ranks", ["uniform:4", "adalora:4"])
def test_adapters_are_where_the_flag_says(ranks, tiny_model, clips, command, tmp_path):
    line = ["train", "-m", tiny_model, "--train", clips, "--cache", "none", "--batch-size", 4, "--steps", 20]
    code, said = command(*line, "-o", tmp_path / "a", "--ranks", ranks, "--adapt", "encoder:attention,cross")
    assert code == 0, said
    pattern = json.loads((tmp_path / "a/ranks.json").read_text())["rank_pattern"]
    assert all(".encoder.layers." in name or ".encoder_attn." in name for name in pattern)
    assert not [name for name in pattern if "fc" in name]
    assert sum(pattern.values()) == 4 * 2 * (4 + 4)
    if ranks == "uniform:4":
        assert f"{4 * 16 * (64 + 64):,} of " in said


def test_ranks_are_dealt_out_over_the_linears_of_the_flag(tiny_model, clips, command, tmp_path):
    path = tmp_path / "ranks.json"
    line = ["ranks", "-m", tiny_model, "--train", clips, "-o", path, "--clips", 8, "--mean-rank", 4, "--language", "en"]
    code, said = command(*line, "--adapt", "decoder:feed-forward")
    assert code == 0, said
    content = json.loads(path.read_text())
    assert content["plan"]["adapt"] == "decoder:feed-forward"
    assert len(content["rank_pattern"]) == 4
    assert content["budget"] == {"parameters": 4 * 4 * (64 + 128), "spent": 4 * 4 * (64 + 128)}
    train = ["train", "-m", tiny_model, "--train", clips, "-o", tmp_path / "a", "--cache", "none", "--batch-size", 4]
    code, said = command(*train, "--steps", 1, "--ranks", path)
    assert code == 0, said
    assert f"{4 * 4 * (64 + 128):,} of " in said
    code, said = command(*train, "--steps", 1, "--ranks", path, "--adapt", "decoder")
    assert (code, "a file that names its linears itself: leave adapt out" in said) == (2, True), said


def test_a_placement_that_cannot_be_leaves_nothing(tiny_model, clips, command, tmp_path):
    for flags, text in (
        (["--adapt", "encoder:atention"], "adapt='encoder:atention': 'encoder:atention' is no part of a model"),
        (["--adapt", "lower"], "'lower' is no group of this model, allowed are encoder, decoder, cross"),
        (["--adapt", "cross:feed-forward"], "cross has no feed-forward linears in this model"),
        (
            ["--adapt", "encoder", "--method", "full"],
            "adapt='encoder' with method='full': allowed with qlora, lora, ia3",
        ),
    ):
        for command_name in ("train", "ranks") if "--method" not in flags else ("train",):
            line = [command_name, "-m", tiny_model, "--train", clips, "-o", tmp_path / "out"]
            code, said = command(*line, *flags)
            assert (code, text in said) == (2, True), said
    assert not list(tmp_path.iterdir())

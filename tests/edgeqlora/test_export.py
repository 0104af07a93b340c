"""Export with a profile: which JetPack, which graphs, and what is said and recorded of unsourced values."""

import json

import pytest
from typer.testing import CliRunner

from edgeqlora.cli.main import app
from edgeqlora.data.manifest import load_for
from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.errors import UserError
from edgeqlora.export import clips_of_margin, export
from edgeqlora.profiles.load import profiles_dir
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.commands.transcribe import format_info


def _export(tiny_model, clips, output, **settings):
    said: list[str] = []
    export(str(tiny_model), output, data=str(clips), window_s="1", n_eval=1, language="en", say=said.append, **settings)
    return json.loads((output / "manifest.json").read_text(encoding="utf-8")), said


def test_an_older_jetpack_decides_tensorrt_and_opset_of_the_bundle(tiny_model, clips, tmp_path):
    manifest, said = _export(tiny_model, clips, tmp_path / "b", target="jetson-orin-nano", jetpack="5.1.6")
    profile = manifest["profile"]
    assert (profile["jetpack"], profile["tensorrt"], profile["python"], profile["opset"]) == ("5.1.6", "8.5", "3.8", 13)
    assert {graph["opset"] for graph in manifest["graphs"].values()} == {13}
    assert any("operator table" in line and "TensorRT 8.5" in line for line in said)
    assert (profile["total_rail"], profile["energy_scope"]) == ("VDD_IN", "module_input")
    assert profile["power_modes"][0]["name"] == "15W"
    assert (profile["unsourced"], profile["unsourced_used"]) == ([], [])
    assert not [line for line in said if "no public document" in line]


def test_unsourced_values_that_are_used_are_said_and_recorded(tiny_model, clips, tmp_path):
    text = (profiles_dir() / "jetson-tx2-nx.toml").read_text(encoding="utf-8")
    own = tmp_path / "mine.toml"
    lines = [
        'max_batch = "unsourced"' if line.startswith('max_batch = "') else line
        for line in text.replace('name = "jetson-tx2-nx"', 'name = "mine"').splitlines()
    ]
    own.write_text("\n".join(lines), encoding="utf-8")
    manifest, said = _export(tiny_model, clips, tmp_path / "b", target=str(own))
    assert "no public document confirms these values of mine, used here: max_batch = 4" in said
    energy = "energy_scope = module_input; rails = VDD_IN; total_rail = VDD_IN"
    assert any(line.endswith(f"which its energy figures will rest on: {energy}") for line in said)
    assert manifest["profile"]["unsourced_used"] == ["max_batch = 4", *energy.split("; ")]
    assert manifest["profile"]["unsourced"] == ["energy_scope", "max_batch", "rails", "total_rail"]


def test_a_jetpack_the_board_has_not_stops_before_any_model_is_read(tmp_path):
    with pytest.raises(UserError, match=r"jetpack='6' is not known for jetson-nano; its releases are 4\.6\.6"):
        export(str(tmp_path / "no-model"), tmp_path / "b", target="jetson-nano", jetpack="6")


def test_nothing_is_replaced_that_we_did_not_write_or_that_is_read(tiny_model, clips, tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("precious")
    monkeypatch.chdir(tmp_path)
    line = ["export", str(tiny_model), "--overwrite", "-d", str(clips), "-o"]
    for output, text in ((".", "it is or holds the current folder"), (str(clips.parent), "what this command reads")):
        assert text in str(CliRunner().invoke(app, [*line, output]).exception)
    monkeypatch.chdir(tmp_path.parent)
    assert "this program did not write it" in str(CliRunner().invoke(app, [*line, str(tmp_path)]).exception)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert clips.exists()


def test_export_without_clips_to_prove_it_on_is_refused(tiny_model, tmp_path):
    line = ["export", str(tiny_model), "-o", str(tmp_path / "b")]
    for flags, text in (
        ([], "export proves the graphs on real clips, and there are none: pass --data"),
        (["-d", str(tmp_path / "gone.jsonl")], "there are none (" + str(tmp_path / "gone.jsonl") + " is not here)"),
    ):
        assert text in str(CliRunner().invoke(app, [*line, *flags]).exception)
    assert not (tmp_path / "b").exists()


def test_without_a_window_a_base_is_exported_in_its_own_which_need_not_be_30_s(tiny_model, clips, command, tmp_path):
    from edgeqlora.models.family import load_learner

    learner = load_learner(str(tiny_model))
    positions = learner.model.get_encoder().embed_positions
    positions.weight.data = positions.weight.data[:100].clone()
    learner.model.config.max_source_positions = positions.num_embeddings = 100
    learner.model.save_pretrained(tmp_path / "base")
    learner.processor.save(tmp_path / "base")
    code, said = command(
        "export", tmp_path / "base", "-d", clips, "-o", tmp_path / "b", "--target", "cpu", "--language", "en"
    )
    assert code == 0, said
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    assert list(manifest["decoder"]["max_new_tokens"]) == ["2.0"]


def test_windows_follow_the_clips_or_not_as_asked(command, tmp_path, monkeypatch):
    import edgeqlora_export.margin as module

    error_figures = module.error_figures
    monkeypatch.setattr(module, "error_figures", lambda pairs, no_words: error_figures([("a", "a")], no_words))
    typed = ("export", model_dir(), "-d", speech_dir() / "dev.jsonl", "--window-s", "3", "--eval-clips", 4)
    manifests, heard = {}, {}
    for margin in ("auto", "off", "1"):
        code, said = command(*typed, "-o", tmp_path / margin, "--margin-s", margin)
        assert code == 0, said
        assert ("trying windows that end 1 s after the clip" in said) == (margin == "1")
        assert ("windows follow the clip and end" in said) == (margin != "off")
        manifests[margin] = json.loads((tmp_path / margin / "manifest.json").read_text())["audio"]
        code, said = command("bench", tmp_path / margin, "--repeats", 1, "-o", tmp_path / f"{margin}.json")
        assert code == 0, said
        report = json.loads((tmp_path / f"{margin}.json").read_text())
        assert report["clips"]["n_again"] == 0
        heard[margin] = [utterance["heard_s"] - utterance["audio_s"] for utterance in report["utterances"]]
        code, said = command("evaluate", tmp_path / margin, "-d", speech_dir() / "dev.jsonl", "--limit", 2)
        seconds = "0.5" if margin == "auto" else margin
        assert (f"windows followed the clips and ended {seconds} s after them: " in said) == (margin != "off"), said
        told = format_info(Bundle.load(tmp_path / margin))
        assert ("Heard       of a window the clip and" in told) == (margin != "off")
    assert [row["margin_s"] for row in manifests["auto"]["margin"]["tried"]] == [None, 0.5]
    assert manifests["auto"]["margin"]["n_clips"] == 96, "all others, which have 250 words together"
    assert manifests["auto"]["margin"]["n_shipped"] == 0
    assert manifests["1"]["margin"]["n_shipped"] == 0
    assert manifests["1"]["margin"]["n_clips"] == 96, "a number that is asked for is tried on the same clips"
    assert "margin" not in manifests["off"]
    assert manifests["1"]["margin"]["margin_s"] == 1.0
    assert all(0.5 <= after_s < 0.7001 for after_s in heard["auto"])
    assert all(1.0 <= after_s < 1.2001 for after_s in heard["1"])
    assert all(after_s > 1.2001 for after_s in heard["off"])


@pytest.mark.parametrize("text", ["two", "0", "31", "nan"])
def test_a_margin_that_cannot_be_is_refused_before_any_model_is_read(text, tmp_path):
    line = ["export", str(tmp_path / "no-model"), "-o", str(tmp_path / "b"), "--margin-s", text]
    with pytest.raises(UserError, match=f"margin_s='{text}': allowed are auto, off, and 0.1 to 30 s, such as 2"):
        CliRunner().invoke(app, line, catch_exceptions=False)


def test_a_margin_is_looked_for_on_clips_that_are_not_shipped_where_these_have_words_enough():
    every = load_for("", str(speech_dir() / "test.jsonl"), "")
    decoder = {"language": "en", "task": "transcribe"}
    shipped = every[:20]
    found = clips_of_margin(every, shipped, decoder)
    assert 32 <= len(found) < 180
    assert sum(len(row.text.split()) for row in found) >= 250
    assert not {id(row) for row in found} & {id(row) for row in shipped}
    few = every[:100]
    assert {id(row) for row in clips_of_margin(few, few[:20], decoder)} & {id(row) for row in few[:20]}


def test_with_too_few_words_whole_windows_are_kept_and_it_is_said(tiny_model, clips, tmp_path):
    manifest, said = _export(tiny_model, clips, tmp_path / "b")
    assert manifest["audio"]["margin"]["margin_s"] is None
    assert any(line.startswith("whole windows are computed: 8 clips with 12 words are too few") for line in said)

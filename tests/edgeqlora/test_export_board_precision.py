"""`export --precision` for a board with TensorRT: fp16 and int8 as types in the graphs, judged with roundings, compiled for real."""

import json

import onnx
import pytest
from onnx import TensorProto

from edgeqlora.demo import model_dir, speech_dir
from edgeqlora_jetson.bundle import Bundle

SHORT = ("--window-s", "3", "--eval-clips", 2, "--margin-s", "off")


def some_clips(path, n):
    rows = [json.loads(line) for line in (speech_dir() / "dev.jsonl").read_text().splitlines()][:n]
    path.write_text("".join(json.dumps({**row, "audio": str(speech_dir() / row["audio"])}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """Flags with 24 clips: an export hears them several times."""
    return ("-d", some_clips(tmp_path_factory.mktemp("some") / "some.jsonl", 24), *SHORT)


def graph_of(folder, graph):
    return onnx.load(str(folder / f"{graph}.onnx")).graph


def test_a_board_gets_fp16_with_norms_and_softmax_in_fp32(command, typed, tmp_path):
    code, said = command("export", model_dir(), "-t", "jetson-nano", *typed, "-o", tmp_path / "b")
    assert code == 0, said
    bundle = Bundle.load(tmp_path / "b")
    found = bundle.manifest["precision"]
    assert found["fp16"]
    assert found["fp32"] == []
    plain, chosen = found["tried"]
    assert chosen["refused"] is None
    assert chosen["ms_per_clip"] is None, "this machine's time says nothing of a board's"
    assert chosen["bytes"] < 0.53 * plain["bytes"]
    assert bundle.precision == "fp16"
    assert bundle.manifest["engine_request"]["precisions"] == ["fp16"]
    assert (
        f"parts of the graphs: {len(found['fp16'])} fp16; engines are not in the bundle"
        in bundle.manifest["profile"]["note"]
    )
    decoder = graph_of(tmp_path / "b", "decoder")
    types = {v.name: v.type.tensor_type.elem_type for v in [*decoder.input, *decoder.output]}
    assert types["logits"] == TensorProto.FLOAT
    assert {types[name] for name in types if name[:4] in ("past", "cros", "pres")} == {TensorProto.FLOAT16}
    assert sorted(path.name for path in (tmp_path / "b").glob("*.onnx*")) == ["decoder.onnx", "encoder.onnx"]
    assert "; of the fp32 graphs that those in fp16 were made of" in bundle.manifest["gates"][0]["detail"]
    code, said = command("bench", tmp_path / "b", "-o", tmp_path / "r.json", "--limit", 4)
    assert code == 0, said
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["bundle"]["precision"] == {"encoder": "fp16", "decoder": "fp16"}
    assert "onnxruntime's CPU provider has no fp16" in said


@pytest.mark.parametrize(("precision", "kinds"), [("fp16", {"fp16"}), ("bf16", {"bf16"}), ("int8", {"int8", "fp16"})])
@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_engines_are_compiled_with_products_of_that_type(command, typed, tmp_path, monkeypatch, kind, precision, kinds):
    monkeypatch.setattr("edgeqlora_export.precision.choose.LEAST_WORDS", 20)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu12)")
    code, said = command(
        "export", model_dir(kind), "-t", "jetson-orin-nano", *typed, "-o", tmp_path / "b",
        "--precision", precision, "--compile-check",
        "--max-wer-increase", 5,
    )  # fmt: skip
    assert code == 0, said
    bundle = Bundle.load(tmp_path / "b")
    gate = bundle.manifest["gates"][-1]
    assert gate["name"] == "compile"
    for figures in gate["graphs"].values():
        assert figures["target"] == "SM86"
        assert (
            kinds <= set(figures["products"]) <= {*kinds, "fp32"}
            if precision == "bf16"
            else set(figures["products"]) == kinds
        )
    assert bundle.manifest["engine_request"]["precisions"] == [precision]
    assert bundle.manifest["precision"]["bf16" if precision == "bf16" else "fp16"]
    if precision == "int8":
        assert bundle.manifest["precision"]["int8"]
        n_calibration = len(bundle.manifest["precision"]["tried"])
        assert n_calibration >= 3, "fp32, fp16, int8"
        nodes = [node.op_type for name in bundle.graphs for node in graph_of(tmp_path / "b", name).node]
        assert nodes.count("QuantizeLinear") > 3
        assert "DynamicQuantizeLinear" not in nodes
        assert not bundle.is_int8, "its steps are constants: clips may go in batches"
    code, said = command("evaluate", tmp_path / "b", "-d", speech_dir() / "dev.jsonl", "--limit", 8)
    assert code == (2 if precision == "bf16" else 0), said
    assert ("onnxruntime runs no bf16 graphs here: build this bundle's engines" in said) == (precision == "bf16")


def test_fp32_graphs_for_a_board_if_asked(command, typed, tmp_path):
    code, said = command(
        "export", model_dir(), "-t", "jetson-nano", *typed, "-o", tmp_path / "b", "--precision", "fp32"
    )
    assert code == 0, said
    bundle = Bundle.load(tmp_path / "b")
    assert "precision" not in bundle.manifest
    assert bundle.manifest["engine_request"]["precisions"] == ["fp32", "fp16"]
    assert "the graphs are fp32; engines are not in the bundle" in bundle.manifest["profile"]["note"]


def test_a_model_that_overflows_in_fp16_keeps_what_does_in_fp32(command, typed, tmp_path):
    """The same function in fp32: values above 65504 on the way, which fp16 makes infinite and a layer norm then zero, with no NaN."""
    import torch

    from edgeqlora.models.family import load_learner

    learner = load_learner(str(model_dir()))
    layer = learner.model.model.encoder.layers[0]
    with torch.no_grad():
        layer.self_attn.v_proj.weight *= 3e5
        layer.self_attn.v_proj.bias *= 3e5
        layer.self_attn.out_proj.weight /= 3e5
    learner.model.save_pretrained(tmp_path / "m")
    learner.processor.save(tmp_path / "m")
    code, said = command("export", tmp_path / "m", "-t", "jetson-nano", *typed, "-o", tmp_path / "b")
    assert code == 0, said
    bundle = Bundle.load(tmp_path / "b")
    found = bundle.manifest["precision"]
    assert max(found["too_large"].values()) > 65504
    assert all(name.startswith("encoder/") for name in found["too_large"])
    assert len(found["tried"]) == 2, "they are kept before anything is tried"
    assert found["tried"][1]["refused"] is None
    kept = bundle.manifest["graphs"]["encoder"]["fp32_nodes"]
    assert "/layers.0/attention/output/MatMul" in kept, "it reads what is too large"
    assert "fp32_nodes" not in bundle.manifest["graphs"]["decoder"]


def test_int8_for_a_board_needs_words_to_count(command, tmp_path):
    few = some_clips(tmp_path / "few.jsonl", 12)
    code, said = command(
        "export",
        model_dir(),
        "-d",
        few,
        *SHORT,
        "-t",
        "jetson-orin-nano",
        "--precision",
        "int8",
        "-o",
        tmp_path / "b",
    )
    assert code == 2
    assert "precision int8 was asked for, and beside 3 clips for its ranges there are 9 clips with " in said
    assert "too few to see what it costs, 250 are needed" in said
    assert not (tmp_path / "b").exists()
    code, said = command("export", model_dir(), "-d", few, *SHORT, "-t", "jetson-orin-nano", "-o", tmp_path / "b")
    assert code == 0, said
    found = Bundle.load(tmp_path / "b").manifest["precision"]
    assert found["fp16"]
    assert "tell no error rate, so only texts that collapse would have refused fp16" in found["reason"]


def test_one_graph_that_must_stay_fp32_still_fits_the_other(command, typed, tmp_path, monkeypatch):
    """The search is made to refuse every mix with a part of the encoder in fp16: both graphs have types all the same."""
    from edgeqlora_export.precision import search

    cost, written = search.cost, []
    monkeypatch.setattr(
        search.Search, "_try", lambda self, low, real=search.Search._try: (written.append(low), real(self, low))[1]
    )
    monkeypatch.setattr(
        search, "cost",
        lambda *given: {**cost(*given), "refused": "no" if any(p.startswith("encoder/") for p in (written or [[]])[-1]) else None},
    )  # fmt: skip
    monkeypatch.setattr(
        search.Search, "_measure_parts",
        lambda self: self.sensitivity.update({p: float(p.startswith("encoder/")) for p in self.form.parts}),
    )  # fmt: skip
    code, said = command("export", model_dir(), "-t", "jetson-nano", *typed, "-o", tmp_path / "b")
    assert code == 0, said
    bundle = Bundle.load(tmp_path / "b")
    found = bundle.manifest["precision"]
    assert all(part.startswith("encoder/") for part in found["fp32"])
    assert {graph["precision"] for graph in bundle.manifest["graphs"].values()} == {"fp16"}
    assert len(bundle.manifest["graphs"]["encoder"]["fp32_nodes"]) > 20
    encoder = graph_of(tmp_path / "b", "encoder")
    assert {value.type.tensor_type.elem_type for value in encoder.output} == {TensorProto.FLOAT16}
    assert {t.data_type for t in encoder.initializer if t.name.endswith("weight")} <= {TensorProto.FLOAT}


def test_where_no_part_can_be_int8_fp16_ships_and_it_is_said(command, typed, tmp_path, monkeypatch):
    from edgeqlora_export.precision import search

    def refuse_int8(self, low, real=search.Search._try):
        row = real(self, low)
        return row | {"refused": "no"} if self.form.low == "int8" else row

    monkeypatch.setattr("edgeqlora_export.precision.choose.LEAST_WORDS", 20)
    monkeypatch.setattr(search.Search, "_try", refuse_int8)
    monkeypatch.setattr(
        search.Search, "_measure_parts", lambda self: self.sensitivity.update(dict.fromkeys(self.form.parts, 1.0))
    )
    flags = ("-t", "jetson-orin-nano", "--precision", "int8", "--max-wer-increase", 100)
    code, said = command("export", model_dir(), *typed, "-o", tmp_path / "b", *flags)
    assert code == 0, said
    assert "no part can be int8 at this limit: what follows is the bundle in fp16" in said
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.manifest["precision"]["int8"] == []
    assert bundle.manifest["engine_request"]["precisions"] == ["fp16"]
    assert "those in fp16 were made of" in bundle.manifest["gates"][0]["detail"]


def test_graphs_that_do_not_answer_as_they_ship_leave_no_bundle(command, typed, tmp_path, monkeypatch):
    found = {"n_collapsed": 0, "n_silent": 1, "refused": "1 have no text any more"}
    monkeypatch.setattr("edgeqlora_export.precision.choose.cost", lambda *given: found)
    code, said = command("export", model_dir(), "-t", "jetson-nano", *typed, "-o", tmp_path / "b")
    assert code == 2
    said = " ".join(said.split())
    assert (
        "the fp16 graphs as they would ship do not answer as those with the same roundings: 1 have no text any more"
        in said
    )
    assert "or pass --precision fp32" in said
    assert not (tmp_path / "b").exists()

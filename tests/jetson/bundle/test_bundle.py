"""A bundle is checked before anything runs; every fault names the file or field."""

import json
import os

import pytest

from edgeqlora_jetson.audio.features import feature_shape
from edgeqlora_jetson.bundle import Bundle, read_clips
from edgeqlora_jetson.bundle import manifest as rules
from edgeqlora_jetson.bundle.manifest import check_manifest
from edgeqlora_jetson.commands.transcribe import format_info
from edgeqlora_jetson.decoders import DECODERS
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import write_json, write_text


def edit_manifest(folder, edit):
    path = os.path.join(folder, "manifest.json")
    with open(path) as file:
        manifest = json.load(file)
    edit(manifest)
    write_json(path, manifest)


def set_field(*keys_and_value):
    def edit(manifest):
        for key in keys_and_value[:-2]:
            manifest = manifest[key]
        manifest[keys_and_value[-2]] = keys_and_value[-1]

    return edit


def test_loads_and_tells_what_is_inside(fixture_folder):
    bundle = Bundle.load(fixture_folder)
    assert bundle.name == "tiny-fixture"
    assert bundle.windows_s == [0.5, 1.0]
    assert [bundle.max_new_tokens(w) for w in bundle.windows_s] == [6, 10]
    assert bundle.load_mel_filters().shape == (201, 16)
    assert len(bundle.load_detokenizer()) == 40
    clips = bundle.read_eval_clips()
    assert [clip.name for clip in clips] == ["0000.wav", "0001.wav", "0002.wav"]
    assert os.path.isfile(clips[0].path)
    assert len(bundle.manifest_sha256) == 64


def test_a_flipped_byte_names_the_file(bundle_copy):
    path = os.path.join(bundle_copy, "decoder.onnx")
    with open(path, "r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=r"decoder.onnx: expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}"):
        Bundle.load(bundle_copy)


def test_half_copied_and_missing_files(bundle_copy):
    path = os.path.join(bundle_copy, "encoder.onnx")
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"encoder.onnx: expected \d+ bytes, found 100"):
        Bundle.load(bundle_copy)
    os.unlink(path)
    with pytest.raises(UserError, match=r"encoder.onnx: this file of the bundle is missing"):
        Bundle.load(bundle_copy)


def test_not_a_bundle(tmp_path):
    with pytest.raises(UserError, match=r"there is no such bundle folder"):
        Bundle.load(tmp_path / "no")
    with pytest.raises(UserError, match=r"not a bundle, there is no manifest.json in it"):
        Bundle.load(tmp_path)
    write_text(tmp_path / "manifest.json", "[]")
    with pytest.raises(UserError, match=r"a bundle manifest is a JSON object, this is list"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            set_field("schema", "edgeqlora.bundle/9"),
            "schema 'edgeqlora.bundle/9', this runner reads 'edgeqlora.bundle/2'",
        ),
        (set_field("model", "n_layers", "four"), "field model.n_layers is 'four', needed: a whole number"),
        (set_field("model", None), "field model.vocab_size is None"),
        (set_field("decoder", "eos_ids", 38), "field decoder.eos_ids is 38, needed: a list of token ids"),
        (set_field("decoder", "eos_ids", [38, 40]), "eos_ids holds 40, allowed: token ids 0 to 39"),
        (set_field("decoder", "suppress_ids", [-1]), "decoder.suppress_ids holds -1"),
        (set_field("decoder", "prompt_ids", []), "prompt_ids is empty"),
        (set_field("decoder", "eos_ids", []), "eos_ids is empty, at least one end token is needed"),
        (set_field("audio", "windows_s", []), "needed: one or more seconds above 0"),
        (
            set_field("audio", "tuned_windows_s", []),
            "audio.tuned_windows_s is [], needed: one or more seconds above 0, at most 3600",
        ),
        (set_field("audio", "tuned_windows_s", 2), "audio.tuned_windows_s is 2, needed: a list of seconds"),
        (set_field("audio", "margin", 2), "field audio.margin is 2, needed: an object with margin_s and least_s"),
        (set_field("audio", "margin", {"margin_s": "2"}), "audio.margin.margin_s is '2', needed: a number of seconds"),
        (set_field("audio", "margin", {"margin_s": 0}), "audio.margin.margin_s is 0, allowed: seconds above 0"),
        (set_field("audio", "margin", {"margin_s": 2}), "audio.margin.least_s is None, allowed: seconds above 0"),
        (set_field("decoder", "max_new_tokens", {"1.0": 6}), "window of 0.5 s is None, allowed 1 to 22"),
        (set_field("decoder", "max_new_tokens", "1.0", 23), "window of 1.0 s is 23, allowed 1 to 22"),
        (set_field("decoder", "max_new_tokens", {"0.5": "6", "1.0": 6}), "window of 0.5 s is '6', allowed 1 to 22"),
        (set_field("decoder", "max_new_tokens", {"half": 6}), "has the window 'half', needed: seconds"),
        (set_field("decoder", "kind", "beam"), "field decoder.kind is 'beam', this runner knows ctc, greedy"),
        (set_field("decoder", "kind", "ctc"), "field decoder.blank_id is None, needed: a token id"),
        (set_field("features", "kind", 3), "field features.kind is 3, needed: a text"),
        (set_field("features", "hop_length", 0), "features.hop_length is 0, allowed 1 to 65536"),
        (set_field("graphs", {"encoder": {}}), "graphs has ['encoder'], needed: encoder and decoder"),
        (set_field("graphs", "encoder", "inputs", [1]), "field graphs.encoder.inputs is [1], needed: names"),
        (set_field("eval", ["x"]), "eval is ['x'], needed: an object with manifest (a file name) and n_clips"),
        (set_field("files", "../x", {"sha256": ""}), "files names '../x', allowed: paths inside the bundle"),
        (set_field("files", "/etc/passwd", {"sha256": ""}), "allowed: paths inside the bundle"),
        (set_field("files", "encoder.onnx", {}), "files entry 'encoder.onnx' has no sha256"),
        (set_field("graphs", "encoder", "file", "e.onnx"), "graphs.encoder.file names 'e.onnx', which is not listed"),
        (set_field("eval", "manifest", "x.jsonl"), "eval.manifest names 'x.jsonl'"),
        (set_field("files", "encoder.onnx", {"sha256": "x"}), "files entry 'encoder.onnx' has no size in bytes"),
        (set_field("profile", "threads", "two"), "field profile.threads is 'two', needed: a whole number"),
        (set_field("gates", [{"name": "x"}]), "gates[0]: field detail is None, needed: a text"),
    ],
)
def test_wrong_fields_are_named(bundle_copy, edit, message):
    edit_manifest(bundle_copy, edit)
    with pytest.raises(UserError) as caught:
        Bundle.load(bundle_copy)
    assert message in str(caught.value)
    assert "manifest.json" in str(caught.value)


def test_no_evaluation_clips(bundle_copy):
    edit_manifest(bundle_copy, set_field("eval", None))
    with pytest.raises(UserError, match=r"carries no evaluation clips. Give some with --manifest"):
        Bundle.load(bundle_copy).read_eval_clips()


def test_mel_filters_of_another_shape(bundle_copy):
    edit_manifest(bundle_copy, set_field("features", "n_mels", 80))
    with pytest.raises(UserError, match=r"mel filters of shape \(201, 16\), the manifest needs \(201, 80\)"):
        Bundle.load(bundle_copy).load_mel_filters()


def test_clip_manifest_rows(tmp_path):
    path = tmp_path / "m.jsonl"
    write_text(path, '{"audio": "a.wav", "text": "one"}\n{"audio": "/x/b.wav", "text": null}\n{"audio": "c.wav"}\n')
    clips = read_clips(path)
    assert [clip.path for clip in clips] == [str(tmp_path / "a.wav"), "/x/b.wav", str(tmp_path / "c.wav")]
    assert [clip.reference for clip in clips] == ["one", None, None]
    for text, message in (
        ('{"file": "a.wav"}', 'line 1: field "audio" is missing'),
        ('{"audio": 3}', 'line 1: field "audio" is 3'),
        ('{"audio": "a.wav", "text": 3}', 'line 1: field "text" is 3'),
        ("\n", "no rows in this manifest"),
    ):
        write_text(path, text)
        with pytest.raises(UserError) as caught:
            read_clips(path)
        assert message in str(caught.value)


CTC = {
    "model": {"family": "wav2vec2", "vocab_size": 32},
    "features": {"kind": "waveform", "normalise": True},
    "decoder": {
        "kind": "ctc",
        "blank_id": 0,
        "word_delimiter": "|",
        "uses_mask": True,
        "conv_kernel": [20, 8],
        "conv_stride": [10, 4],
        "language": None,
        "task": "transcribe",
        "detokenizer": "detokenizer.json",
    },
    "graphs": {
        "ctc": {"file": "encoder.onnx", "opset": 13, "precision": "fp32", "inputs": ["audio"], "outputs": ["logits"]}
    },
}


def places(node, path=()):
    """Path of every key and list index below a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield path + (key,)
        for place in places(value, path + (key,)):
            yield place


CTC_REQUEST = {
    "schema": "edgeqlora.engines/2",
    "tensorrt": "8.2",
    "precisions": ["fp32"],
    "workspace_mib": None,
    "max_batch": 2,
    "graphs": {
        "ctc": {
            "optimization_profiles": [
                {
                    "name": "window {:g} s".format(window_s),
                    "inputs": {"audio": {key: [1, int(16000 * window_s)] for key in ("min", "opt", "max")}},
                }
                for window_s in (0.5, 1.0)
            ],
            "outputs": {"logits": [1, 100, 32]},
            "on_device": [],
        }
    },
}


def read_manifest(fixture_folder, kind, with_request):
    with open(os.path.join(fixture_folder, "manifest.json")) as file:
        manifest = json.load(file)
    if kind == "ctc":
        manifest.update(CTC)
    if with_request and kind == "ctc":
        manifest["engine_request"] = CTC_REQUEST
    elif with_request:
        with open(os.path.join(os.path.dirname(fixture_folder), "engine_request.json")) as file:
            manifest["engine_request"] = json.load(file)
    return manifest


@pytest.mark.parametrize("kind", ["greedy", "ctc"])
@pytest.mark.parametrize("with_request", [False, True])
def test_whatever_is_wrong_in_a_manifest_is_a_message(fixture_folder, kind, with_request):
    """Every key and every item, missing or of another type or size: a UserError, or a bundle that can be described."""
    manifest = read_manifest(fixture_folder, kind, with_request)
    check_manifest(manifest, "manifest.json")
    n_refused = 0
    for place in places(manifest):
        for wrong in (None, "x", "", -1, 0, 0.5, 10**9, True, [], [None], [-1], {}, {"x": None}, float("nan"), "drop"):
            copy = json.loads(json.dumps(manifest))
            node = copy
            for key in place[:-1]:
                node = node[key]
            if wrong == "drop":
                del node[place[-1]]
            else:
                node[place[-1]] = wrong
            try:
                check_manifest(copy, "manifest.json")
            except UserError:
                n_refused += 1
                continue
            try:
                bundle = Bundle(fixture_folder, copy)
                format_info(bundle)
                [feature_shape(copy, window_s) for window_s in bundle.windows_s]
                DECODERS[copy["decoder"]["kind"]](None, copy)
            except Exception as error:
                pytest.fail("{} = {!r}: {!r}".format(".".join(map(str, place)), wrong, error))
    assert n_refused > 500


@pytest.mark.parametrize("kind", ["greedy", "ctc"])
def test_no_required_key_may_be_missing(fixture_folder, kind):
    manifest = read_manifest(fixture_folder, kind, False)
    required = dict(rules._REQUIRED)
    required.update(rules._FEATURES[manifest["features"]["kind"]])
    required.update(rules.DECODERS[kind].required)
    assert len(required) > 12
    for path in required:
        copy = json.loads(json.dumps(manifest))
        node = copy
        for key in path.split(".")[:-1]:
            node = node[key]
        del node[path.split(".")[-1]]
        with pytest.raises(UserError, match="field {} is None, needed".format(path)):
            check_manifest(copy, "manifest.json")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_field("decoder", "blank_id", 32), "decoder.blank_id holds 32, allowed: token ids 0 to 31"),
        (set_field("decoder", "conv_kernel", [20, 0]), "conv_kernel is [20, 0], needed: whole numbers of at least 1"),
        (set_field("decoder", "conv_stride", [10]), "conv_kernel and conv_stride differ in length, needed: one each"),
        (set_field("features", "normalise", 1), "field features.normalise is 1, needed: true or false"),
        (set_field("audio", "windows_s", [2.0]), "engine_request has no ctc shape for the window of 2 s"),
    ],
)
def test_wrong_fields_of_a_ctc_bundle_are_named(fixture_folder, edit, message):
    manifest = json.loads(json.dumps(read_manifest(fixture_folder, "ctc", True)))
    edit(manifest)
    with pytest.raises(UserError) as caught:
        check_manifest(manifest, "manifest.json")
    assert message in str(caught.value)

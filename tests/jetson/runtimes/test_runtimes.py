"""Opening a runtime: what is missing or wrong is said with the next step."""

import sys

import pytest

from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import write_bytes
from edgeqlora_jetson.runtimes import open_runtime


def test_unknown_runtime_lists_the_known(fixture_folder):
    with pytest.raises(UserError, match=r"runtime 'onnxruntim' is not known, allowed: .*onnxruntime.*did you mean"):
        open_runtime(Bundle.load(fixture_folder), "onnxruntim")


def test_threads_out_of_range(fixture_folder):
    with pytest.raises(UserError, match=r"threads=0, allowed 1 to 1024"):
        open_runtime(Bundle.load(fixture_folder), threads=0)


def test_missing_onnxruntime_gives_the_pip_line(fixture_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    wanted = r"onnxruntime==1\.10\.0" if sys.version_info < (3, 7) else r"pip install onnxruntime"
    with pytest.raises(UserError, match=wanted):
        open_runtime(Bundle.load(fixture_folder))


def test_unknown_provider(fixture_folder):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"'MagicProvider' is not in this onnxruntime, allowed: .*CPUExecutionProvider"):
        open_runtime(Bundle.load(fixture_folder), providers=["MagicProvider"])


def test_graph_that_is_none(bundle_copy):
    pytest.importorskip("onnxruntime")
    bundle = Bundle.load(bundle_copy)
    write_bytes(bundle.graph_path("encoder"), b"not a graph")
    with pytest.raises(UserError, match=r"encoder.onnx: onnxruntime .* cannot load this graph"):
        open_runtime(bundle)


def test_graph_without_the_expected_inputs(bundle_copy):
    pytest.importorskip("onnxruntime")
    bundle = Bundle.load(bundle_copy)
    with open(bundle.graph_path("encoder"), "rb") as file:
        write_bytes(bundle.graph_path("decoder"), file.read())
    with pytest.raises(UserError, match=r"decoder.onnx: this graph lacks .*logits"):
        open_runtime(bundle)


def test_says_what_is_active(transcriber):
    runtime = transcriber.runtime
    assert runtime.name == "onnxruntime"
    assert runtime.providers == ["CPUExecutionProvider"]
    assert runtime.threads == 1


def test_threads_come_from_the_profile(fixture_folder):
    pytest.importorskip("onnxruntime")
    assert open_runtime(Bundle.load(fixture_folder)).threads == 1
    assert open_runtime(Bundle.load(fixture_folder), threads=2).threads == 2

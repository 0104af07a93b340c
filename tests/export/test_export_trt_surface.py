"""The stand-ins of TensorRT invent nothing, and the code is typed against TensorRT 10.13: checked with what NVIDIA ships.

tensorrt-stubs 10.13 (types of the real package), TensorRT-RTX (whose surface is TensorRT 11's), and for 8.2 and 8.5 the
names that NVIDIA/TensorRT's python/src/infer/pyCore.cpp defines at those releases.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

JETSON_TESTS = Path(__file__).resolve().parents[1] / "jetson"
ROOT = JETSON_TESTS.parents[1]
sys.path.insert(0, str(JETSON_TESTS))

from fakes.tensorrt import FLAGS, NETWORK_FLAGS, make_tensorrt  # noqa: E402

CLASSES = ("Builder", "OnnxParser", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "Runtime")

BINDINGS = {
    "ICudaEngine": "num_bindings get_binding_name binding_is_input get_binding_dtype num_optimization_profiles "
    "create_execution_context",
    "IExecutionContext": "set_binding_shape execute_async_v2 set_optimization_profile_async",
    "IBuilderConfig": "max_workspace_size set_flag clear_flag add_optimization_profile create_timing_cache "
    "set_timing_cache get_timing_cache",
    "Builder": "create_network create_builder_config create_optimization_profile build_serialized_network "
    "platform_has_fast_fp16",
    "OnnxParser": "num_errors get_error parse_from_file",
    "Runtime": "deserialize_cuda_engine",
}
TENSORS = {
    "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype",
    "IExecutionContext": "set_input_shape set_tensor_address execute_async_v3",
    "IBuilderConfig": "set_memory_pool_limit",
}
DOCUMENTED = {
    "8.2": {name: set(names.split()) for name, names in BINDINGS.items()},
    "8.5": {name: set((names + " " + TENSORS.get(name, "")).split()) for name, names in BINDINGS.items()},
}


def surface(cls):
    """Public names of a stand-in's class; what tests need on top of it is left out."""
    private = {"last", "profiles", "flags_set", "limits"}
    return {name for name in dir(cls) if not name.startswith("_")} - private


@pytest.fixture(scope="module")
def stubs():
    """Folder with tensorrt-stubs."""
    found = importlib.util.find_spec("tensorrt_stubs")
    if found is None or found.origin is None:
        pytest.skip("tensorrt-stubs is not installed (pip install tensorrt-stubs)")
    return Path(found.origin).parents[1]


def stub_names(text, cls):
    """Methods, properties and members of a class in a stub file."""
    body = re.search(rf"^class {cls}(?:\(.*\))?:\n((?:(?:    .*)?\n)+)", text, re.MULTILINE)
    assert body, cls
    return set(re.findall(r"^    (?:def )?(\w+)(?:\(|:)", body.group(1), re.MULTILINE))


@pytest.mark.parametrize("release", ["8.2", "8.5"])
def test_the_old_surfaces_are_the_documented_ones(release):
    module = make_tensorrt(release)
    for cls in CLASSES:
        assert surface(getattr(module, cls)) == DOCUMENTED[release][cls], cls


def test_the_surface_of_10_is_in_the_stubs(stubs):
    text = (stubs / "tensorrt_bindings" / "tensorrt.pyi").read_text()
    module = make_tensorrt("10")
    for cls in (*CLASSES, "IOptimizationProfile", "ILayer"):
        # The stub's documentation, not its code, declares some properties of Builder.
        missing = surface(getattr(module, cls)) - stub_names(text, cls)
        assert not missing, (cls, missing)
    assert set(FLAGS["10"]) <= stub_names(text, "BuilderFlag")
    assert set(NETWORK_FLAGS["10"]) == {"EXPLICIT_BATCH", "STRONGLY_TYPED"}
    assert {"EXPLICIT_BATCH", "STRONGLY_TYPED"} <= stub_names(text, "NetworkDefinitionCreationFlag")
    assert "execute_async_v2" not in stub_names(text, "IExecutionContext")
    assert "max_workspace_size" not in stub_names(text, "IBuilderConfig")


def test_the_surface_of_11_is_that_of_a_library_without_precision_flags():
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu12)")
    module = make_tensorrt("11")
    for cls in (*CLASSES, "IOptimizationProfile"):
        missing = surface(getattr(module, cls)) - set(dir(getattr(trt, cls)))
        assert not missing, (cls, missing)
    assert set(FLAGS["11"]) <= set(dir(trt.BuilderFlag))
    assert not hasattr(trt.BuilderFlag, "FP16")
    assert not hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    assert not hasattr(trt.ILayer, "precision")
    for name in ("ILogger", "LayerType", "MemoryPoolType", "TensorIOMode", "ElementWiseOperation", "UnaryOperation"):
        fake_names = {n for n in dir(getattr(module, name)) if n.isupper()}
        assert fake_names <= set(dir(getattr(trt, name))), name


def test_every_name_the_code_takes_from_tensorrt_exists(stubs):
    """`trt.Name` and `trt.Name.MEMBER` in our code, against the stubs; 8.2's own names are the known exception."""
    text = (stubs / "tensorrt_bindings" / "tensorrt.pyi").read_text()
    package = (stubs / "tensorrt" / "__init__.pyi").read_text()
    runtimes = ROOT / "jetson" / "edgeqlora_jetson" / "runtimes"
    source = "".join((runtimes / name).read_text() for name in ("trt_adapters.py", "trt_builder.py", "trt_engine.py"))
    used = set(re.findall(r"\btrt\.([A-Za-z]\w*)(?:\.([A-Z]\w*))?", source))
    assert len(used) > 10
    for name, member in used:
        if name == "__version__":
            continue
        assert re.search(rf"\b{name}\b", package), name
        if member:
            assert member in stub_names(text, name), (name, member)


def test_the_code_is_typed_against_the_stubs(stubs, tmp_path):
    """mypy on adapters and builder with NVIDIA's types; five lines of the stub that are not Python are mended first."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    for package in ("tensorrt", "tensorrt_bindings"):
        (tmp_path / "stubs" / package).mkdir(parents=True)
        for file in (stubs / package).glob("*.pyi"):
            shutil.copy(file, tmp_path / "stubs" / package)
    mend(tmp_path / "stubs" / "tensorrt_bindings" / "tensorrt.pyi")
    config = "[mypy]\nignore_missing_imports = True\ncheck_untyped_defs = True\nwarn_unreachable = False\n"
    (tmp_path / "mypy.ini").write_text(
        f"{config}mypy_path = {tmp_path / 'stubs'}:{ROOT / 'jetson'}\n[mypy-tensorrt_bindings.*]\nignore_errors = True\n"
    )

    def check(*files):
        return subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"), "--cache-dir",
             str(tmp_path / "cache"), "--follow-imports=silent", *map(str, files)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    runtimes = ROOT / "jetson" / "edgeqlora_jetson" / "runtimes"
    result = check(runtimes / "trt_adapters.py", runtimes / "trt_builder.py")
    assert result.returncode == 0, result.stdout + result.stderr
    # The check must be able to fail: a call that 10.13 does not have.
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt\n\n\ndef f(c: tensorrt.IExecutionContext) -> None:\n    c.execute_async_v2([], 0)\n"
    )
    result = check(wrong)
    assert '"IExecutionContext" has no attribute "execute_async_v2"' in result.stdout


def mend(path):
    """Make the generated stub Python: parameters called `in`, and one without default behind one with."""
    text = path.read_text()
    text = re.sub(r"\bin: (list\[\w+\])", r"in_: \1", text)
    text = text.replace("power: Weights = None, channel_axis: int)", "power: Weights = None, channel_axis: int = 0)")
    compile(text, str(path), "exec")
    path.write_text(text)

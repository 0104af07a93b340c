"""The tiny bundle with an engine request, and its engines built by the real builder code in a stand-in of TensorRT."""

import json
import os

from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.engine_cache import engine_key, engine_path, read_place, write_record
from edgeqlora_jetson.engines import GRAPHS, optimization_profiles
from edgeqlora_jetson.files import read_json, write_bytes, write_json
from edgeqlora_jetson.runtimes.trt_builder import build_plan

HERE = os.path.dirname(os.path.abspath(__file__))


def load_request():
    """What edgeqlora_export.engine_request gives for the tiny bundle (a test there compares them)."""
    with open(os.path.join(HERE, "fixture_engine_request.json")) as file:
        return json.load(file)


def ask_for_engines(folder):
    """Write the request into a copy of the tiny bundle, and open it."""
    path = os.path.join(folder, "manifest.json")
    manifest = read_json(path, "manifest")
    manifest["engine_request"] = load_request()
    write_json(path, manifest)
    return Bundle.load(folder)


def build_all(bundle, cache_dir, trt, cuda, root, precision="fp32"):
    """Build both engines here and now; returns what the builder says of each graph."""
    place, built = read_place(trt, cuda, root), {}
    for graph in GRAPHS:
        profiles = optimization_profiles(bundle.manifest["engine_request"], graph)
        built[graph] = build_plan(trt, bundle.graph_path(graph), profiles, precision, workspace_mib=64)
        key = engine_key(bundle, graph, place, precision)
        write_bytes(engine_path(cache_dir, key), bytes(built[graph].plan))
        facts = {
            "precision": built[graph].precision,
            "n_fp32_layers": len(built[graph].fp32_layers),
            "tf32": built[graph].tf32,
            "created_utc": "2026-01-01T00:00:00Z",
            "build_s": 1.0,
        }
        write_record(cache_dir, key, facts)
    return built

"""What the bundle asks TensorRT for: one engine a graph, the shapes it must take, its precision. Checked and read here.

The workstation writes it into the manifest ("engine_request"), the board builds from it; TensorRT's "profile" is
always called optimization_profile here, since `profile` is the hardware's.
"""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..audio.windows import window_samples
from ..errors import UserError

SCHEMA = "edgeqlora.engines/1"
GRAPHS = ("encoder", "decoder")
PRECISIONS = ("fp32", "fp16")
BOUNDS = ("min", "opt", "max")


class OptimizationProfile(NamedTuple):
    """One range of shapes that an engine takes, and the shapes its kernels are chosen for."""

    name: str  # such as "window 2 s", "prefill", "step"
    inputs: Dict[str, Dict[str, Tuple[int, ...]]]  # input -> {"min", "opt", "max"} -> shape

    def fits(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """True when every input's shape lies inside this range."""
        return all(
            len(shape) == len(self.inputs[name]["min"])
            and all(low <= n <= high for low, n, high in zip(self.inputs[name]["min"], shape, self.inputs[name]["max"]))
            for name, shape in shapes.items()
        )


def optimization_profiles(request: Dict[str, Any], graph: str) -> List[OptimizationProfile]:
    """The optimization profiles of a checked request's graph, in the order the engine has them."""
    return [
        OptimizationProfile(
            entry["name"],
            {
                name: {bound: tuple(shapes[bound]) for bound in BOUNDS}
                for name, shapes in sorted(entry["inputs"].items())
            },
        )
        for entry in request["graphs"][graph]["optimization_profiles"]
    ]


def check_request(request: Any, name: Any, model: Optional[Dict[str, Any]] = None) -> None:
    """Check an engine request; with `model` (the manifest's) also that it names that model's inputs.

    Raises UserError naming `name`, the field, what was found and what is allowed.
    """
    if not isinstance(request, dict):
        raise UserError("{}: engine_request is {}, needed: an object or null".format(name, type(request).__name__))
    if request.get("schema") != SCHEMA:
        raise UserError(
            "{}: engine_request.schema is {!r}, this runner reads {!r}: export the bundle again with the version of "
            "edgeqlora that made the runner".format(name, request.get("schema"), SCHEMA)
        )
    precisions = request.get("precisions")
    if not isinstance(precisions, list) or not precisions or not all(p in PRECISIONS for p in precisions):
        raise UserError(
            "{}: engine_request.precisions is {!r}, needed: a list out of {}".format(
                name, precisions, ", ".join(PRECISIONS)
            )
        )
    workspace_mib = request.get("workspace_mib")
    if workspace_mib is not None and not _is_count(workspace_mib, 1):
        raise UserError(
            "{}: engine_request.workspace_mib is {!r}, needed: MiB of at least 1, or null".format(name, workspace_mib)
        )
    for field in ("max_batch", "max_positions"):
        if not _is_count(request.get(field), 1):
            raise UserError(
                "{}: engine_request.{} is {!r}, needed: a whole number of at least 1".format(
                    name, field, request.get(field)
                )
            )
    graphs = request.get("graphs")
    if not isinstance(graphs, dict) or sorted(graphs) != sorted(GRAPHS):
        raise UserError("{}: engine_request.graphs needs exactly {}".format(name, " and ".join(GRAPHS)))
    for graph in GRAPHS:
        _check_graph(graphs[graph], "{}: engine_request.graphs.{}".format(name, graph), _inputs_of(graph, model))


def check_covers(request: Dict[str, Any], manifest: Dict[str, Any], name: Any) -> None:
    """Check that engines of a (checked) request take every window and the longest transcript of the manifest.

    Raises UserError naming the window or the length that no engine would take.
    """
    audio, decoding = manifest["audio"], manifest["decoding"]
    encoder = optimization_profiles(request, "encoder")
    for window_s in audio["windows_s"]:
        shape = (1, audio["n_mels"], window_samples(window_s, audio["sample_rate_hz"]) // audio["hop_length"])
        if not any(profile.fits({"mel": shape}) for profile in encoder):
            raise UserError(
                "{}: engine_request has no encoder shape for the window of {:g} s (mel {}): export the bundle "
                "again".format(name, window_s, shape)
            )
    needed = len(decoding["prompt_ids"]) + max(decoding["max_new_tokens"].values())
    if needed > request["max_positions"]:
        raise UserError(
            "{}: engine_request.max_positions is {}, the prompt and the longest transcript need {}: export the "
            "bundle again".format(name, request["max_positions"], needed)
        )


def _inputs_of(graph: str, model: Optional[Dict[str, Any]]) -> Optional[List[str]]:
    if model is None:
        return None
    if graph == "encoder":
        return ["mel"]
    names = ("past_k_{}", "past_v_{}", "cross_k_{}", "cross_v_{}")
    return sorted(["tokens"] + [name.format(i) for i in range(model["n_layers"]) for name in names])


def _check_graph(graph: Any, where: str, names: Optional[List[str]]) -> None:
    profiles = graph.get("optimization_profiles") if isinstance(graph, dict) else None
    if not isinstance(profiles, list) or not profiles:
        raise UserError("{}.optimization_profiles is {!r}, needed: at least one".format(where, profiles))
    for i, profile in enumerate(profiles):
        here = "{}.optimization_profiles[{}]".format(where, i)
        inputs = profile.get("inputs") if isinstance(profile, dict) else None
        if not isinstance(inputs, dict) or not inputs or not isinstance(profile.get("name"), str):
            raise UserError("{} needs a name and inputs".format(here))
        if names is not None and sorted(inputs) != names:
            wrong = sorted(set(inputs) ^ set(names))
            raise UserError("{}.inputs: {} not as the model has it".format(here, ", ".join(wrong)))
        for name, shapes in inputs.items():
            _check_shapes(shapes, "{}.inputs.{}".format(here, name))


def _check_shapes(shapes: Any, where: str) -> None:
    if not isinstance(shapes, dict) or sorted(shapes) != sorted(BOUNDS):
        raise UserError("{} is {!r}, needed: min, opt and max".format(where, shapes))
    for bound in BOUNDS:
        if not isinstance(shapes[bound], list) or not all(_is_count(n, 0) for n in shapes[bound]):
            raise UserError(
                "{}.{} is {!r}, needed: a shape, whole numbers of at least 0".format(where, bound, shapes[bound])
            )
    ranks = {len(shapes[bound]) for bound in BOUNDS}
    if len(ranks) != 1 or 0 in ranks:
        raise UserError("{}: min, opt and max need the same number of axes, found {}".format(where, sorted(ranks)))
    for low, best, high in zip(*(shapes[bound] for bound in BOUNDS)):
        if not low <= best <= high:
            raise UserError(
                "{}: min {}, opt {}, max {}: needed min <= opt <= max on every axis".format(
                    where, shapes["min"], shapes["opt"], shapes["max"]
                )
            )


def _is_count(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest

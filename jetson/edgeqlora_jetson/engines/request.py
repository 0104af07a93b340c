"""What the bundle asks TensorRT for: one engine a graph, the shapes it must take, its precision. Checked and read here.

The workstation writes it into the manifest ("engine_request"), the board builds from it; TensorRT's "profile" is
always called optimization_profile here, since `profile` is the hardware's.
"""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import UserError

SCHEMA = "edgeqlora.engines/2"
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
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


def check_request(request: Any, name: Any, graphs: Optional[Mapping[str, Any]] = None) -> None:
    """Check an engine request; with `graphs` (the manifest's) also that it names those graphs' inputs and outputs.

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
    if not _is_count(request.get("max_batch"), 1):
        raise UserError(
            "{}: engine_request.max_batch is {!r}, needed: a whole number of at least 1".format(
                name, request.get("max_batch")
            )
        )
    asked = request.get("graphs")
    if not isinstance(asked, dict) or not asked or (graphs is not None and sorted(asked) != sorted(graphs)):
        raise UserError(
            "{}: engine_request.graphs needs exactly {}".format(name, " and ".join(graphs or ["at least one graph"]))
        )
    for graph in asked:
        _check_graph(
            asked[graph], "{}: engine_request.graphs.{}".format(name, graph), None if graphs is None else graphs[graph]
        )


def choose_precision(request: Optional[Dict[str, Any]], precision: Optional[str]) -> str:
    """The precision to build or run engines in: the one asked for, None: the request's first.

    Raises UserError for one that engines of these graphs cannot have.
    """
    allowed = list(request["precisions"]) if request else ["fp32"]
    if precision is not None and precision not in allowed:
        raise UserError(
            "precision {!r}: engines of this bundle can be {}; for another one export it again with --precision".format(
                precision, " or ".join(allowed)
            )
        )
    return precision or str(allowed[0])


def check_covers(
    request: Dict[str, Any], graph: str, shapes: Mapping[str, Sequence[int]], what: str, name: Any
) -> None:
    """Check that an optimization profile of a (checked) request takes these inputs of a graph, needed for `what`.

    Raises UserError naming what no engine would take.
    """
    if not any(profile.fits(shapes) for profile in optimization_profiles(request, graph)):
        raise UserError(
            "{}: engine_request has no {} shape for {} ({}): export the bundle again".format(
                name, graph, what, ", ".join("{} {}".format(key, tuple(shape)) for key, shape in shapes.items())
            )
        )


def _check_graph(graph: Any, where: str, declared: Optional[Mapping[str, Any]]) -> None:
    profiles = graph.get("optimization_profiles") if isinstance(graph, dict) else None
    if not isinstance(profiles, list) or not profiles:
        raise UserError("{}.optimization_profiles is {!r}, needed: at least one".format(where, profiles))
    for i, profile in enumerate(profiles):
        here = "{}.optimization_profiles[{}]".format(where, i)
        inputs = profile.get("inputs") if isinstance(profile, dict) else None
        if not isinstance(inputs, dict) or not inputs or not isinstance(profile.get("name"), str):
            raise UserError("{} needs a name and inputs".format(here))
        _check_names(inputs, None if declared is None else declared["inputs"], here + ".inputs")
        for name, shapes in inputs.items():
            _check_shapes(shapes, "{}.inputs.{}".format(here, name))
    names = sorted(profiles[0]["inputs"])
    outputs, on_device = graph.get("outputs"), graph.get("on_device")
    if not isinstance(outputs, dict) or not all(_is_shape(shape) for shape in outputs.values()):
        raise UserError("{}.outputs is {!r}, needed: the largest shape of each output".format(where, outputs))
    _check_names(outputs, None if declared is None else declared["outputs"], where + ".outputs")
    known = set(outputs) | set(names)
    if not isinstance(on_device, list) or not all(isinstance(n, str) and n in known for n in on_device):
        raise UserError(
            "{}.on_device is {!r}, needed: a list of its inputs and outputs that stay on the device".format(
                where, on_device
            )
        )


def _check_names(found: Mapping[str, Any], wanted: Optional[Sequence[str]], where: str) -> None:
    if wanted is not None and set(found) != set(wanted):
        raise UserError("{}: {} not as the graph has it".format(where, ", ".join(sorted(set(found) ^ set(wanted)))))


def _check_shapes(shapes: Any, where: str) -> None:
    if not isinstance(shapes, dict) or sorted(shapes) != sorted(BOUNDS):
        raise UserError("{} is {!r}, needed: min, opt and max".format(where, shapes))
    for bound in BOUNDS:
        if not _is_shape(shapes[bound]):
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


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(_is_count(n, 0) for n in value)


def _is_count(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest

"""Build one TensorRT engine from one ONNX graph: network, parser, optimization profiles, configuration.

Written against the Python bindings of 8.2, 8.5 and 10.13; what a release lacks is found by hasattr. This side was
really executed with TensorRT-RTX, which has TensorRT 11's surface; not run on hardware.
"""

from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from ..engines.request import BOUNDS, OptimizationProfile
from ..errors import UserError
from .trt_adapters import last_errors, make_logger

if TYPE_CHECKING:  # tensorrt-stubs: calls are checked against 10.13's types
    import tensorrt

_DEFAULT_WORKSPACE_MIB = 256
"""Where the release has no memory pools (before 8.4) and the bundle names no cap: its own default of 16 MiB rules out
the kernels that matter (NVIDIA/TensorRT#1666)."""


class Built(NamedTuple):
    """An engine, serialised, and how it came about."""

    plan: Any  # bytes-like
    precision: str  # what it really has: fp32, fp16, bf16 or int8 (with fp32_layers)
    fp32_layers: List[str]  # layers kept in fp32 inside an fp16 engine
    timing_cache: Optional[bytes]  # measured kernels, for the next build
    notes: List[str]  # what could not be done as asked, in sentences
    tf32: Optional[bool] = None  # products in fp32 may use TF32's 10 bits; None: this TensorRT has no such switch


def build_plan(
    trt: Any,
    onnx_path: str,
    profiles: Sequence[OptimizationProfile],
    precision: str = "fp32",
    workspace_mib: Optional[int] = None,
    timing_cache: Optional[bytes] = None,
    configure: Optional[Callable[[Any], None]] = None,
    graph_precision: str = "fp32",
    fp32_nodes: Sequence[str] = (),
    hear: Optional[Callable[[str], None]] = None,
) -> Built:
    """Build the engine of a graph file; takes seconds to many minutes and far more memory than running it.

    timing_cache: kernels measured by an earlier build, b"" for none yet, None: keep none.
    configure: called with the builder's configuration last (the compile check names its GPU there). graph_precision: fp16,
    bf16 and int8 are types in the graph, which TensorRT from 10 on takes as they are; older ones choose, and are told of fp32_nodes to keep,
    beside softmax and norms. hear: called with what TensorRT says that is no error.
    Raises UserError when the parser or the builder refuses, with TensorRT's own words.
    """
    logger = make_logger(trt, hear)
    notes: List[str] = []
    builder: "tensorrt.Builder" = trt.Builder(logger)
    # The parser stays until the engine is built: it owns the weights that the network points to.
    has_types = graph_precision != "fp32" and (
        hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") or not hasattr(trt.BuilderFlag, "FP16")
    )
    if graph_precision == "bf16" and not has_types:
        raise UserError(
            "{}: TensorRT {} does not keep the types of a graph, which bf16 needs (10 and newer do): export again with --precision fp16".format(
                onnx_path, trt.__version__
            )
        )
    network, parser = parse_network(trt, builder, onnx_path, logger, has_types)
    config = builder.create_builder_config()
    set_workspace(trt, config, workspace_mib)
    for profile in profiles:
        add_profile(builder, config, network, profile, logger)
    fp32_layers: List[str] = []
    if has_types:
        precision = graph_precision
    elif precision != "fp32" and not hasattr(trt.BuilderFlag, "FP16"):
        notes.append(
            "TensorRT {} has no precision flags: the engine has the graph's own precision, {}".format(
                trt.__version__, graph_precision
            )
        )
        precision = graph_precision
    if precision != "fp32" and not getattr(builder, "platform_has_fast_fp16", True):
        notes.append("this GPU has no fast fp16 according to TensorRT: the engine may be slower than in fp32")
    if precision != "fp32" and not has_types:
        config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
        fp32_layers = keep_fp32(trt, config, network, fp32_nodes)
        if not fp32_layers:
            notes.append("no layer could be kept in fp32: compare the error rate with onnxruntime's")
    tf32 = allow_tf32(trt, config, precision != "fp32")
    has_cache = timing_cache is not None and load_timing_cache(config, timing_cache)
    logger.errors.clear()  # an old timing cache is refused with an error that is none of the build's
    if configure is not None:
        configure(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(
            "{}: TensorRT {} cannot build this engine: {}".format(onnx_path, trt.__version__, last_errors(logger))
        )
    del parser
    measured = bytes(memoryview(config.get_timing_cache().serialize())) if has_cache else None
    return Built(plan, precision, fp32_layers, measured, notes, tf32)


def parse_network(
    trt: Any, builder: "tensorrt.Builder", onnx_path: str, logger: Any, has_types: bool = False
) -> "Tuple[tensorrt.INetworkDefinition, tensorrt.OnnxParser]":
    """The graph as TensorRT's network, and the parser. has_types: its types are kept. Raises UserError naming the nodes that the
    parser refuses."""
    # EXPLICIT_BATCH: needed up to 8.x, ignored by 10.x, gone in 11. STRONGLY_TYPED: from 10 on; in 11 every network is.
    flags = trt.NetworkDefinitionCreationFlag
    names = ["EXPLICIT_BATCH"] + (["STRONGLY_TYPED"] if has_types else [])
    network = builder.create_network(sum(1 << int(getattr(flags, name)) for name in names if hasattr(flags, name)))
    parser: "tensorrt.OnnxParser" = trt.OnnxParser(network, logger)
    # By path, not by content: weights beside the graph are found that way.
    if not parser.parse_from_file(onnx_path):
        errors = [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
        raise UserError(
            "{}: TensorRT {} cannot read this graph: {}. Export the bundle for the profile of this board".format(
                onnx_path, trt.__version__, "; ".join(errors[:3]) or last_errors(logger)
            )
        )
    return network, parser


def _describe(error: "tensorrt.ParserError") -> str:
    """A parser's error in words; from 10.x on it names the operator, whose description alone may be "false"."""
    parts = ["node {}".format(error.node())]
    for attribute in ("node_operator", "node_name"):
        if hasattr(error, attribute) and getattr(error, attribute)():
            parts.append(str(getattr(error, attribute)()))
    return "{}: {}".format(" ".join(parts), error.desc())


def set_workspace(trt: Any, config: "tensorrt.IBuilderConfig", workspace_mib: Optional[int]) -> None:
    """Cap the scratch memory of kernels; None: TensorRT's own cap."""
    if hasattr(config, "set_memory_pool_limit"):
        if workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    else:
        old: Any = config  # the name is gone in 10.x
        old.max_workspace_size = (workspace_mib or _DEFAULT_WORKSPACE_MIB) << 20


def add_profile(
    builder: "tensorrt.Builder",
    config: "tensorrt.IBuilderConfig",
    network: "tensorrt.INetworkDefinition",
    wanted: OptimizationProfile,
    logger: Any,
) -> None:
    """Give the configuration an optimization profile. Raises UserError when its inputs are not the network's."""
    names = {network.get_input(i).name for i in range(network.num_inputs)}
    if names != set(wanted.inputs):
        raise UserError(
            "engine_request: optimization profile {!r} differs from the graph's inputs in {}: export the bundle "
            "again".format(wanted.name, ", ".join(sorted(names ^ set(wanted.inputs))))
        )
    profile: Any = builder.create_optimization_profile()  # its stub wants Dims, the library takes tuples
    for name, shapes in sorted(wanted.inputs.items()):
        profile.set_shape(name, *(tuple(shapes[bound]) for bound in BOUNDS))
    if config.add_optimization_profile(profile) < 0:
        raise UserError(
            "engine_request: TensorRT refuses optimization profile {!r}: {}".format(wanted.name, last_errors(logger))
        )


def keep_fp32(
    trt: Any, config: "tensorrt.IBuilderConfig", network: "tensorrt.INetworkDefinition", nodes: Sequence[str] = ()
) -> List[str]:
    """Keep what overflows or loses its digits in fp16 in fp32: softmax, layer norm and its parts, and nodes by name; returns the layers.

    A layer norm in plain operators is reduce, subtract, power, reduce, add epsilon, square root, divide. Squares of
    activations above 256 leave fp16's range, and an epsilon of 1e-5 is below its normal numbers: whole engines answer
    NaN or nonsense (NVIDIA/TensorRT#1500, #2564, #3101; microsoft/onnxruntime#31626).
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    sensitive = _sensitive(trt, layers, set(nodes))
    for layer in sensitive:
        layer.precision = trt.float32
        for i in range(layer.num_outputs):
            if layer.get_output(i).dtype == trt.float32:
                layer.set_output_type(i, trt.float32)
    # 8.2 knows only STRICT_TYPES. PREFER, not OBEY: a release that cannot comply warns instead of failing the build.
    for name in ("PREFER_PRECISION_CONSTRAINTS", "STRICT_TYPES"):
        if hasattr(trt.BuilderFlag, name):
            config.set_flag(getattr(trt.BuilderFlag, name))
            break
    return [layer.name for layer in sensitive]


def allow_tf32(trt: Any, config: "tensorrt.IBuilderConfig", allowed: bool) -> Optional[bool]:
    """Switch TF32 off for an engine that is to be fp32; returns whether it is on, None where there is no switch.

    It is on by default, and from Ampere on (Orin) rounds the inputs of products to 10 bits: no fp32 to compare with.
    """
    if not hasattr(trt.BuilderFlag, "TF32"):
        return None
    if not allowed:
        config.clear_flag(trt.BuilderFlag.TF32)
    return allowed


def load_timing_cache(config: "tensorrt.IBuilderConfig", data: bytes) -> bool:
    """Let the builder use and fill a cache of measured kernels; False where this TensorRT has none.

    Data of another TensorRT or GPU is dropped: it is refused by TensorRT, and an empty one begins.
    """
    if not hasattr(config, "create_timing_cache"):
        return False
    for content in (data, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False) is not False:
            return True
    return False


def _sensitive(trt: Any, layers: "Sequence[tensorrt.ILayer]", nodes: Set[str]) -> "List[tensorrt.ILayer]":
    """Layers to keep in fp32, in the network's order: by type, the neighbours of each square root, and those of nodes by name."""
    producers: Dict[str, int] = {}
    consumers: Dict[str, List[int]] = {}
    for number, layer in enumerate(layers):
        for i in range(layer.num_outputs):
            producers[layer.get_output(i).name] = number
        for i in range(layer.num_inputs):
            tensor = layer.get_input(i)
            if tensor is not None:
                consumers.setdefault(tensor.name, []).append(number)
    always = [getattr(trt.LayerType, name, None) for name in ("SOFTMAX", "REDUCE", "NORMALIZATION")]
    chosen: Set[int] = set()
    for number, layer in enumerate(layers):
        if _is_integer(trt, layer):
            continue  # shape arithmetic has reduces too; it is not about activations
        # The parser names a layer as its node, and more layers of the same node with something after it.
        if layer.name in nodes or layer.name.rpartition("_")[0] in nodes:
            chosen.add(number)
        if layer.type in always or _is_operation(trt, layer, "ELEMENTWISE", "POW"):
            chosen.add(number)
        if _is_operation(trt, layer, "UNARY", "SQRT"):
            chosen.add(number)
            chosen.update(producers[t.name] for t in _inputs(layer) if t.name in producers)  # adds epsilon
            chosen.update(consumers.get(layer.get_output(0).name, []))  # divides
    return [layers[number] for number in sorted(chosen)]


def _inputs(layer: "tensorrt.ILayer") -> "List[tensorrt.ITensor]":
    tensors = [layer.get_input(i) for i in range(layer.num_inputs)]
    return [tensor for tensor in tensors if tensor is not None]


def _is_integer(trt: Any, layer: "tensorrt.ILayer") -> bool:
    return layer.num_outputs > 0 and layer.get_output(0).dtype not in (trt.float32, trt.float16)


def _is_operation(trt: Any, layer: Any, kind: str, operation: str) -> bool:
    """True for an element-wise or unary layer of this operation."""
    if layer.type != getattr(trt.LayerType, kind):
        return False
    # A network hands out its layers as ILayer, which has no `op`; the object itself is of the wider class.
    class_name, enumeration = {
        "ELEMENTWISE": ("IElementWiseLayer", "ElementWiseOperation"),
        "UNARY": ("IUnaryLayer", "UnaryOperation"),
    }[kind]
    layer.__class__ = getattr(trt, class_name)
    return layer.op == getattr(getattr(trt, enumeration), operation)

"""Stand-ins for TensorRT's Python package, which execute by onnxruntime and refuse every misuse.

make_tensorrt("8.2" | "8.5" | "10" | "11", memory) gives a module with the surface of that release, and nothing more:

8.2, 8.5   python/src/infer/pyCore.cpp of NVIDIA/TensorRT at those releases
10         tensorrt-stubs 10.13
11         TensorRT-RTX 1.7's Python package (its surface is TensorRT 11's; a test compares the names)

`memory` is a FakeCuda (or HostMemory): it gives bytes for addresses and takes work for streams. Where TensorRT only
logs an error or returns False, the stand-in raises Misuse: the code under test should not have got there.
"""

import json
import types
import warnings

import numpy as np
from fakes.cuda import Misuse

VERSIONS = {"8.2": "8.2.1.8", "8.5": "8.5.2.2", "10": "10.3.0.30", "11": "11.4.1.5"}
GPU = "Fake Orin"
_MAGIC = b"FAKE-PLAN"
_ORT_TYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int32)": "INT32"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32}


class Enum(object):
    """A value of one of TensorRT's enumerations."""

    def __init__(self, family, name, number):
        self.family, self.name, self.number = family, name, number

    def __int__(self):
        return self.number

    def __repr__(self):
        return "{}.{}".format(self.family, self.name)


def enumeration(family, names):
    """A class with one attribute a value; attributes that a release lacks are missing (hasattr)."""
    return type(family, (), {name: Enum(family, name, i) for i, name in enumerate(names)})


DataType = enumeration("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL"])
LayerType = enumeration("LayerType", ["MATRIX_MULTIPLY", "SOFTMAX", "REDUCE", "ELEMENTWISE", "UNARY", "SHAPE"])
TensorIOMode = enumeration("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
MemoryPoolType = enumeration("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM"])
ElementWiseOperation = enumeration("ElementWiseOperation", ["SUM", "PROD", "SUB", "DIV", "POW"])
UnaryOperation = enumeration("UnaryOperation", ["EXP", "LOG", "SQRT"])


class ILogger(object):
    ERROR, INTERNAL_ERROR, WARNING, INFO, VERBOSE = (
        Enum("Severity", name, i) for i, name in enumerate(["ERROR", "INTERNAL_ERROR", "WARNING", "INFO", "VERBOSE"])
    )


class Tensor(object):
    """A tensor of a network."""

    __slots__ = ("dtype", "name", "shape")

    def __init__(self, name, dtype=DataType.FLOAT, shape=()):
        self.name, self.dtype, self.shape = name, dtype, shape


def layer_classes(release):
    """ILayer as a network hands it out, without `op`, and the two classes that have it; precision only up to 10.x."""

    class Untyped(object):
        def __init__(self, name, kind, inputs, output, operation=None):
            self.name, self.type = name, kind
            self._inputs, self._output, self._operation = inputs, output, operation
            self.num_inputs, self.num_outputs = len(inputs), 1

        def __setattr__(self, name, value):
            if name == "precision" and release == "11":
                raise AttributeError("layers have no precision in this release")
            object.__setattr__(self, name, value)

        def get_input(self, index):
            return self._inputs[index]

        def get_output(self, index):
            return self._output

    class Typed(Untyped):
        def set_output_type(self, index, dtype):
            self.output_type = dtype

    base = Untyped if release == "11" else Typed
    operation = property(lambda self: self._operation)
    return (
        type("ILayer", (base,), {}),
        type("IElementWiseLayer", (base,), {"op": operation}),
        type("IUnaryLayer", (base,), {"op": operation}),
    )


def sample_layers(layer):
    """A layer norm in plain operators, a softmax, a product, and shape arithmetic with a reduce of its own."""
    names = ["x", "mean", "centred", "squares", "variance", "sum", "root", "normal", "scores", "weights"]
    t = {name: Tensor(name) for name in names}
    t["epsilon"], t["size"], t["total"] = (
        Tensor("epsilon"),
        Tensor("size", DataType.INT32),
        Tensor("total", DataType.INT32),
    )
    kinds, ops = LayerType, ElementWiseOperation
    return [
        layer("norm/ReduceMean", kinds.REDUCE, [t["x"]], t["mean"]),
        layer("norm/Sub", kinds.ELEMENTWISE, [t["x"], t["mean"]], t["centred"], ops.SUB),
        layer("norm/Pow", kinds.ELEMENTWISE, [t["centred"], t["epsilon"]], t["squares"], ops.POW),
        layer("norm/ReduceMean_1", kinds.REDUCE, [t["squares"]], t["variance"]),
        layer("norm/Add", kinds.ELEMENTWISE, [t["variance"], t["epsilon"]], t["sum"], ops.SUM),
        layer("norm/Sqrt", kinds.UNARY, [t["sum"]], t["root"], UnaryOperation.SQRT),
        layer("norm/Div", kinds.ELEMENTWISE, [t["centred"], t["root"]], t["normal"], ops.DIV),
        layer("MatMul", kinds.MATRIX_MULTIPLY, [t["normal"], None], t["scores"]),
        layer("Softmax", kinds.SOFTMAX, [t["scores"]], t["weights"]),
        layer("Shape", kinds.SHAPE, [t["x"]], t["size"]),
        layer("ReduceProd", kinds.REDUCE, [t["size"]], t["total"]),
    ]


def open_session(content):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])


def profile_ranges(profile):
    return {name: [tuple(shape) for shape in shapes] for name, shapes in profile.items()}


class EngineCore(object):
    """A deserialised plan: graph, optimization profiles."""

    def __init__(self, plan, memory, logger):
        self.logger = logger
        size = int.from_bytes(plan[9:13], "little")
        self.header = json.loads(plan[13 : 13 + size].decode("utf-8"))
        self.session = open_session(bytes(plan[13 + size :]))
        self.memory = memory
        self.profiles = [profile_ranges(profile) for profile in self.header["profiles"]]
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.outputs = [node.name for node in self.session.get_outputs()]
        nodes = self.session.get_inputs() + self.session.get_outputs()
        self.dtypes = {node.name: getattr(DataType, _ORT_TYPES[node.type]) for node in nodes}
        self.names = self.inputs + self.outputs
        self.in_use = set()  # optimization profiles that a context has taken


class ContextCore(object):
    """Shapes and addresses of a context, and the execution that checks them."""

    def __init__(self, core):
        self._core = core
        self.profile = None
        if 0 not in core.in_use:  # documented: the first context begins with optimization profile 0
            self._use(0)
        self.shapes, self.addresses = {}, {}

    def _use(self, number):
        if not 0 <= number < len(self._core.profiles):
            raise Misuse("there is no optimization profile {}".format(number))
        if number != self.profile and number in self._core.in_use:
            raise Misuse("optimization profile {} is in use by another context".format(number))
        self._core.in_use.discard(self.profile)
        self._core.in_use.add(number)
        self.profile = number

    def select(self, number, stream):
        self._use(number)
        self.shapes = {}  # documented: dynamic shapes must be set again
        return True

    def set_shape(self, name, shape):
        if self.profile is None:
            raise Misuse("no optimization profile is selected")
        if name not in self._core.inputs:
            raise Misuse("{} is no input".format(name))
        low, _, high = self._core.profiles[self.profile][name]
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high)):
            raise Misuse("{} of shape {} is outside {} to {}".format(name, tuple(shape), low, high))
        self.shapes[name] = tuple(shape)
        return True

    def execute(self, stream, addresses):
        core = self._core
        if self.profile is None:
            raise Misuse("execution without an optimization profile")
        missing = [name for name in core.inputs if name not in self.shapes]
        if missing:
            raise Misuse("execution before the shape of {} is set".format(missing[0]))
        null = [name for name in core.names if not addresses.get(name)]
        if null:
            raise Misuse("execution before the address of {} is set".format(null[0]))
        shapes, addresses = dict(self.shapes), dict(addresses)

        def kernels():
            feeds = {}
            for name in core.inputs:
                feeds[name] = self._read(name, shapes[name], addresses[name])
            results = core.session.run(core.outputs, feeds)
            spans = [(addresses[name], addresses[name] + feeds[name].nbytes) for name in core.inputs]
            for name, result in zip(core.outputs, results):
                start, end = addresses[name], addresses[name] + result.nbytes
                if any(start < b and a < end for a, b in spans):
                    raise Misuse("output {} is written over memory that is still read".format(name))
                spans.append((start, end))
                core.memory.resolve(start, result.nbytes)[:] = np.ascontiguousarray(result).reshape(-1).view(np.uint8)

        core.memory.enqueue(stream, kernels, set(addresses.values()))
        return True

    def _read(self, name, shape, address):
        dtype = np.dtype(_NUMPY[self._core.dtypes[name].name])
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        # An empty tensor, too, lies somewhere: at least one byte of an allocation.
        view = self._core.memory.resolve(address, max(1, n_bytes))[:n_bytes].view(dtype).reshape(shape)
        if dtype.kind == "f" and not np.isfinite(view).all():
            raise Misuse("input {} was never written, or holds another dtype".format(name))
        return view.copy()


def deprecated(function):
    def warn(self, *arguments):
        warnings.warn("deprecated in TensorRT 8.5", DeprecationWarning, stacklevel=2)
        return function(self, *arguments)

    return warn


def plain(function):
    return function


def bindings_api(mark):
    """Engine and context methods of 8.2; `mark` wraps them in 8.5, where they are deprecated."""

    class Engine(object):
        @property
        def num_bindings(self):
            return len(self._core.names) * len(self._core.profiles)

        @mark
        def get_binding_name(self, index):
            n = len(self._core.names)
            suffix = " [profile {}]".format(index // n) if index >= n else ""
            return self._core.names[index % n] + suffix

        @mark
        def binding_is_input(self, index):
            return self._core.names[index % len(self._core.names)] in self._core.inputs

        @mark
        def get_binding_dtype(self, index):
            return self._core.dtypes[self._core.names[index % len(self._core.names)]]

    class Context(object):
        @mark
        def set_binding_shape(self, binding, shape):
            profile, index = divmod(binding, len(self._engine_core.names))
            if profile != self._core.profile:
                raise Misuse("binding {} belongs to optimization profile {}".format(binding, profile))
            return self._core.set_shape(self._engine_core.names[index], shape)

        def execute_async_v2(self, bindings, stream_handle, input_consumed=None):
            names = self._engine_core.names
            if len(bindings) != len(names) * len(self._engine_core.profiles):
                raise Misuse("{} addresses for the bindings of all optimization profiles".format(len(bindings)))
            first = (self._core.profile or 0) * len(names)
            return self._core.execute(stream_handle, dict(zip(names, bindings[first : first + len(names)])))

    return Engine, Context


class TensorEngine(object):
    """Engine methods of 8.5 and newer."""

    @property
    def num_io_tensors(self):
        return len(self._core.names)

    def get_tensor_name(self, index):
        return self._core.names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._core.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self._core.dtypes[name]


class TensorContext(object):
    """Context methods of 8.5 and newer."""

    def set_input_shape(self, name, shape):
        return self._core.set_shape(name, shape)

    def set_tensor_address(self, name, memory):
        if name not in self._engine_core.names:
            raise Misuse("{} is neither input nor output".format(name))
        self._core.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        return self._core.execute(stream_handle, self._core.addresses)


def make_tensorrt(release, memory=None):
    """The module of a release; `memory`: a FakeCuda or HostMemory, needed to execute."""
    version = VERSIONS[release]
    engine_bases, context_bases = [], []
    if release != "8.2":
        engine_bases, context_bases = [TensorEngine], [TensorContext]
    if release in ("8.2", "8.5"):
        engine, context = bindings_api(deprecated if release == "8.5" else plain)
        engine_bases, context_bases = [*engine_bases, engine], [*context_bases, context]

    class IExecutionContext(*context_bases):
        def __init__(self, engine_core):
            self._engine_core = engine_core
            self._core = ContextCore(engine_core)

        def set_optimization_profile_async(self, profile_index, stream_handle):
            try:
                return self._core.select(profile_index, stream_handle)
            except Misuse as error:  # the bindings never return False here (context_set_optimization_profile_async)
                self._engine_core.logger.log(ILogger.ERROR, str(error))
                raise RuntimeError("Error in set optimization profile async.") from error

    class ICudaEngine(*engine_bases):
        def __init__(self, core):
            self._core = core

        @property
        def num_optimization_profiles(self):
            return len(self._core.profiles)

        def create_execution_context(self):
            return IExecutionContext(self._core)

    class Runtime(object):
        def __init__(self, logger):
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            plan = bytes(serialized_engine)
            if not plan.startswith(_MAGIC):
                self._logger.log(ILogger.ERROR, "Serialization assertion failed. Magic tag does not match")
                return None
            core = EngineCore(plan, memory, self._logger)
            if core.header["version"] != version:
                self._logger.log(
                    ILogger.ERROR, "Version tag does not match. Built by {}".format(core.header["version"])
                )
                return None
            return ICudaEngine(core)

    module = types.ModuleType("fake_tensorrt_" + release.replace(".", "_"))
    module.__version__ = version
    module.ILogger, module.DataType, module.LayerType = ILogger, DataType, LayerType
    module.float32, module.float16, module.int32 = DataType.FLOAT, DataType.HALF, DataType.INT32
    module.nptype = make_nptype(release)
    module.ILayer, module.IElementWiseLayer, module.IUnaryLayer = layer_classes(release)
    module.ElementWiseOperation, module.UnaryOperation = ElementWiseOperation, UnaryOperation
    module.Runtime, module.ICudaEngine, module.IExecutionContext = Runtime, ICudaEngine, IExecutionContext
    if release != "8.2":
        module.TensorIOMode, module.MemoryPoolType = TensorIOMode, MemoryPoolType
    add_builder(module, release, version)
    return module


def make_nptype(release):
    def nptype(dtype):
        if release == "8.5":  # as the real one with numpy 1.24 to 1.26
            raise AttributeError("module 'numpy' has no attribute 'bool'")
        return _NUMPY[dtype.name]

    return nptype


FLAGS = {
    "8.2": ["FP16", "INT8", "DEBUG", "GPU_FALLBACK", "STRICT_TYPES", "REFIT", "DISABLE_TIMING_CACHE", "TF32"],
    "8.5": ["FP16", "INT8", "STRICT_TYPES", "TF32", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"],
    "10": [
        "FP16",
        "INT8",
        "DEBUG",
        "REFIT",
        "TF32",
        "OBEY_PRECISION_CONSTRAINTS",
        "PREFER_PRECISION_CONSTRAINTS",
        "BF16",
    ],
    "11": ["DEBUG", "GPU_FALLBACK", "REFIT", "TF32", "STRICT_NANS"],
}
NETWORK_FLAGS = {
    "8.2": ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"],
    "8.5": ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"],
    "10": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
    "11": ["STRONGLY_TYPED"],
}


def add_builder(module, release, version):
    """The builder's half of the surface."""
    module.BuilderFlag = enumeration("BuilderFlag", FLAGS[release])
    module.NetworkDefinitionCreationFlag = enumeration("NetworkDefinitionCreationFlag", NETWORK_FLAGS[release])

    class Network(object):
        def __init__(self, flags):
            self.flags, self.content, self.inputs = flags, None, []
            self.layers = sample_layers(module.ILayer)

        num_inputs = property(lambda self: len(self.inputs))
        num_layers = property(lambda self: len(self.layers))

        def get_input(self, index):
            return self.inputs[index]

        def get_layer(self, index):
            return self.layers[index]

    class Error(object):
        def __init__(self, text):
            self._text = text

        def node(self):
            return 3

        def desc(self):
            return self._text

    class OnnxParser(object):
        def __init__(self, network, logger):
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, index):
            return self._errors[index]

        def parse_from_file(self, model):
            with open(model, "rb") as file:
                content = file.read()
            try:
                session = open_session(content)
            except Exception as error:
                self._errors.append(Error("Failed to parse: {}".format(str(error).split("\n")[0])))
                return False
            self._network.content = content
            self._network.inputs = [
                Tensor(node.name, getattr(DataType, _ORT_TYPES[node.type]), node.shape) for node in session.get_inputs()
            ]
            return True

    class Profile(object):
        def __init__(self):
            self.shapes = {}

        def set_shape(self, input, min, opt, max):
            if not len(min) == len(opt) == len(max) or not all(0 <= a <= b <= c for a, b, c in zip(min, opt, max)):
                raise ValueError("inconsistent shapes of {}".format(input))
            self.shapes[input] = [list(min), list(opt), list(max)]

    class TimingCache(object):
        def __init__(self, content):
            self.content = content

        def serialize(self):
            return self.content + b"+measured"

    class ConfigBase(object):
        __slots__ = ("_cache", "_logger", "flags_set", "limits", "profiles")

        def __init__(self, logger):
            self.profiles, self.limits, self._cache, self._logger = [], {}, None, logger
            self.flags_set = ["TF32"]  # documented: enabled by default

        def set_flag(self, flag):
            if flag.family != "BuilderFlag" or flag.name not in FLAGS[release]:
                raise Misuse("{} is no flag of this release".format(flag))
            self.flags_set.append(flag.name)

        def clear_flag(self, flag):
            if flag.family != "BuilderFlag" or flag.name not in FLAGS[release]:
                raise Misuse("{} is no flag of this release".format(flag))
            self.flags_set.remove(flag.name)

        def add_optimization_profile(self, profile):
            self.profiles.append(profile.shapes)
            return len(self.profiles) - 1

        def create_timing_cache(self, serialized_timing_cache):
            return TimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache, ignore_mismatch):
            if ignore_mismatch:
                raise Misuse("times of another GPU would be believed")
            if cache.content and not cache.content.startswith(version.encode("ascii")):
                self._logger.log(ILogger.ERROR, "timing cache does not match the version of TensorRT")
                return False
            self._cache = TimingCache(cache.content or version.encode("ascii"))
            return True

        def get_timing_cache(self):
            return self._cache

    class PoolConfig(ConfigBase):
        __slots__ = ()

        def set_memory_pool_limit(self, pool, pool_size):
            self.limits[pool.name] = pool_size

    class BothConfig(PoolConfig):
        __slots__ = ()

        @property
        def max_workspace_size(self):
            return self.limits.get("WORKSPACE", 0)

        @max_workspace_size.setter
        def max_workspace_size(self, value):
            warnings.warn("deprecated in TensorRT 8.3", DeprecationWarning, stacklevel=2)

    class OldConfig(ConfigBase):
        __slots__ = ("max_workspace_size",)

        def __init__(self, logger):
            ConfigBase.__init__(self, logger)
            self.max_workspace_size = 16 << 20

    config_class = {"8.2": OldConfig, "8.5": BothConfig}.get(release, PoolConfig)

    class Builder(object):
        last = None  # (network, config) of the last build, for tests

        def __init__(self, logger):
            self._logger = logger

        def create_network(self, flags=0):
            if release.startswith("8") and not flags & 1:
                raise Misuse("without EXPLICIT_BATCH the ONNX parser refuses the network")
            return Network(flags)

        def create_builder_config(self):
            return config_class(self._logger)

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
            if typed is not None and network.flags & (1 << int(typed)) and {"FP16", "INT8"} & set(config.flags_set):
                raise Misuse("a strongly typed network takes no precision flags")
            halves = [tensor.name for tensor in network.inputs if tensor.dtype == DataType.HALF]
            if halves and release.startswith("8") and "FP16" not in config.flags_set:
                raise Misuse("{} is fp16, and fp16 is not configured in the builder".format(halves[0]))
            for profile in config.profiles:
                for tensor in network.inputs:
                    self._check(tensor, profile)
            if not config.profiles:
                self._logger.log(ILogger.ERROR, "Network has dynamic inputs, but no optimization profile is defined")
                return None
            Builder.last = (network, config)
            header = json.dumps({"version": version, "gpu": GPU, "profiles": config.profiles}).encode("utf-8")
            return memoryview(_MAGIC + len(header).to_bytes(4, "little") + header + network.content)

        def _check(self, tensor, profile):
            if tensor.name not in profile:
                raise Misuse("an optimization profile lacks input {}".format(tensor.name))
            for shape in profile[tensor.name]:
                fixed = [(n, size) for n, size in zip(shape, tensor.shape) if isinstance(size, int)]
                if len(shape) != len(tensor.shape) or any(n != size for n, size in fixed):
                    raise Misuse("{}: {} does not fit the graph's {}".format(tensor.name, shape, tensor.shape))

    if release != "11":
        Builder.platform_has_fast_fp16 = True
    module.Builder, module.OnnxParser = Builder, OnnxParser
    module.IBuilderConfig = config_class
    module.INetworkDefinition, module.IOptimizationProfile = Network, Profile

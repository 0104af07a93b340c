"""A hardware profile as one pydantic model: what each field means, what is allowed in it, and what must fit together.

The docstring of a field is also the text that an error about it prints: it says what is allowed, with the unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _without_repeats(entries: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(entries)) < len(entries):
        raise ValueError("each entry once, without repeats")
    return entries


Entry = TypeVar("Entry")
# TOML has lists, the profile has tuples: only that one conversion is allowed, the entries are taken as they are.
Entries = Annotated[tuple[Entry, ...], Field(strict=False, min_length=1), AfterValidator(_without_repeats)]
Text = Annotated[str, Field(pattern=r"\S")]
Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
Rail = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
Opset = Annotated[int, Field(ge=13, le=20)]
# No text is taken for a number and no `true` for 1; the docstrings become `Profile.model_fields[...].description`.
_CONFIG = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class ProfilePowerMode(BaseModel):
    """One power mode of the board's nvpmodel table. The name decides: numbers differ between images."""

    model_config = _CONFIG

    id: int = Field(ge=0, le=63)
    """Number in /etc/nvpmodel.conf of NVIDIA's image, 0 to 63; never used to set or to judge a mode."""
    name: Text
    """Name in /etc/nvpmodel.conf: a text such as "MODE_15W"."""
    watt_cap: int | float | None = Field(None, ge=1, le=1000)
    """Power budget of the mode, 1 to 1000 W; left out: no budget, or not known."""
    gpu_max_mhz: int | None = Field(None, ge=1, le=10000)
    """Highest GPU clock of the mode, 1 to 10000 MHz; left out: not known."""
    tpc_pg_mask: int | None = Field(None, ge=0, le=65535)
    """Which texture processing clusters (2 SM each) the mode powers off, one bit each, 0 to 65535; left out: not known."""
    variant: Literal["", "super"] = ""
    """Of which conf file: "super" (it comes with the -super device tree), or "" or left out (the ordinary one)."""


class JetpackRelease(BaseModel):
    """One JetPack release of the board and what it brings."""

    model_config = _CONFIG

    jetpack: Version
    """JetPack: a version such as "6.2.2"."""
    l4t: Version
    """Jetson Linux: a version such as "36.5.0"."""
    tensorrt: Version
    """TensorRT: a version such as "10.3.0.30"."""
    python: Version
    """Python of its Ubuntu: a version such as "3.10"."""
    cuda: Version
    """CUDA: a version such as "12.6"."""
    opset: Opset
    """ONNX opset to export with for that TensorRT, 13 to 20."""

    @property
    def tensorrt_major_minor(self) -> str:
        """TensorRT as profiles name it, such as "10.3"."""
        return ".".join(self.tensorrt.split(".")[:2])


class Profile(BaseModel):
    """One board. Keys that are left out are None or empty: not applicable, or not known (see `absent`)."""

    model_config = _CONFIG

    name: Text
    """Name for --target: the file's name without .toml."""
    title: Text
    """The board in words: a text."""
    opset: Opset
    """ONNX opset of the exported graphs, 13 to 20."""
    precisions: Entries[Literal["fp32", "fp16", "bf16", "int8"]]
    """Precisions that TensorRT offers on the board, best first: a list out of fp32, fp16, bf16, int8. Engines use
    fp16 and fp32."""
    max_window_s: float = Field(ge=0.02, le=30)
    """Longest audio window that the board is asked to encode, 0.02 to 30 s."""
    max_batch: int = Field(ge=1, le=64)
    """Largest batch, 1 to 64 clips."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of the runner, 1 to 1024; left out: one per core."""
    memory_mib: int | None = Field(None, ge=256, le=1048576)
    """Memory of the board, shared by CPU and GPU, 256 to 1048576 MiB; left out: not known."""
    tensorrt: Version | None = None
    """TensorRT: a version such as "8.2"; left out: no TensorRT."""
    python: Version
    """Python of the board's system: a version such as "3.6"."""
    workspace_mib: int | None = Field(None, ge=16, le=65536)
    """Cap on TensorRT's workspace when engines are built, 16 to 65536 MiB."""
    notes: Text
    """What a user should know: a text."""
    kind: Literal["jetson", "cpu", "gpu"]
    """What it is: "jetson", "cpu" or "gpu" (a workstation's); left out: "jetson" with a tensorrt, else "cpu"."""
    soc: str | None = Field(None, pattern="^[a-z0-9]+$")
    """System on chip, such as "tegra234"."""
    compute_capability: str | None = Field(None, pattern=r"^\d+\.\d$")
    """CUDA compute capability of the GPU, such as "8.7"."""
    gpu_cores: int | None = Field(None, ge=1, le=100000)
    """CUDA cores of the GPU, 1 to 100000."""
    memory_bandwidth_gbs: int | float | None = Field(None, ge=1, le=10000)
    """Peak memory bandwidth, 1 to 10000 GB/s."""
    memory_budget_mib: int | None = Field(None, ge=256, le=1048576)
    """What model and runtime together may take of the memory, 256 to 1048576 MiB."""
    part_numbers: Entries[Annotated[str, Field(pattern=r"^p\d{4}-\d{4}$")]] = ()
    """Module part numbers: a list of texts such as "p3767-0005"."""
    compatible: Entries[Annotated[str, Field(pattern=r"^[^,\s]+,\S+$")]] = ()
    """What /proc/device-tree/compatible holds on this board, and on its sisters too: a list of texts such as
    "nvidia,p3767-0005"."""
    models: Entries[Text] = ()
    """What /proc/device-tree/model holds on this board, and mostly on its sisters too: a list of texts."""
    power_modes: tuple[ProfilePowerMode, ...] = Field((), strict=False)
    """Power modes of NVIDIA's images: a list of tables, [[power_modes]]."""
    default_power_mode: Text | None = None
    """Name of the mode after flashing, without the -super device tree."""
    default_power_mode_super: Text | None = None
    """Name of the mode after flashing, with the -super device tree."""
    total_rail: Rail | None = None
    """The power rail that covers everything of `energy_scope`, such as "VDD_IN"; left out: the board has none."""
    sum_rails: Entries[Rail] = ()
    """Rails that may be added up where there is no total rail: a list of names such as "VDD_SOC"; left out: adding up is
    not allowed."""
    optional_rails: Entries[Rail] = ()
    """Rails added to the sum where they are seen (sysfs shows them, tegrastats does not everywhere): a list of names such
    as "VDD_SOC"."""
    rails: Entries[Rail] = ()
    """Every power rail that the board is known to show: a list of names such as "VDD_IN"."""
    energy_scope: Literal["module_input", "system_input", "sum_of_rails", "none"] = "none"
    """What the total covers: module_input, system_input, sum_of_rails or none."""
    jetpack: Version | None = None
    """The JetPack release that opset, tensorrt and python are of, such as "6.2.2"; left out: not a Jetson."""
    jetpacks: tuple[JetpackRelease, ...] = Field((), strict=False)
    """JetPack releases that run on the board, oldest first: a list of tables, [[jetpacks]]."""
    sources: dict[str, Text]
    """Where each value comes from: a table with a text for each key or "KEY.PART". A text that starts with "unsourced"
    marks a value that no public document confirms."""
    absent: dict[str, Text] = {}
    """Why a key has no value: a table with a text for each such key."""

    @property
    def unsourced(self) -> tuple[str, ...]:
        """Keys, and parts as KEY.PART, whose source is "unsourced" or starts so; sorted."""
        return tuple(sorted(key for key, text in self.sources.items() if text.strip().lower().startswith("unsourced")))

    def to_plain(self) -> dict[str, Any]:
        """Plain flat values for the bundle's manifest, with the names of the unsourced ones; sources stay here."""
        return {**self.model_dump(mode="json", exclude={"sources", "absent"}), "unsourced": list(self.unsourced)}

    @model_validator(mode="after")
    def _fits_together(self) -> Profile:
        problems = [
            *self._source_problems(),
            *self._release_problems(),
            *self._memory_problems(),
            *self._rail_problems(),
            *self._power_mode_problems(),
        ]
        if "fp32" not in self.precisions:
            problems.append("precisions has no fp32: the graphs are exported in it and it always runs; add it")
        if problems:
            raise ValueError(*problems)
        return self

    def _source_problems(self) -> Iterator[str]:
        """A source for every given value, for nothing else; a reason only for values that are not given."""
        needed = self.model_fields_set - {"name", "title", "notes", "kind", "sources", "absent"}
        for key in sorted(self.sources):
            whole, _, part = key.partition(".")
            if whole not in needed:
                yield f"sources.{key} names no key of this profile; allowed: {', '.join(sorted(needed))}"
            elif part and part not in (parts := _parts(getattr(self, whole))):
                yield f"sources.{key!r} names no part of {whole}; allowed: {', '.join(parts) or 'none'}"
        for key in sorted(needed - set(self.sources)):
            yield f"key 'sources.{key}' is missing; add it: a text that says where {key} comes from, or \"unsourced\""
        for key in self.absent:
            if key not in type(self).model_fields or key in self.model_fields_set:
                yield f"absent.{key}: allowed: a key of profiles that this one does not give"

    def _release_problems(self) -> Iterator[str]:
        names = [release.jetpack for release in self.jetpacks]
        yield from (f"JetPack {name} stands {n} times; allowed: once" for name, n in Counter(names).items() if n > 1)
        if self.jetpack is not None and self.jetpack not in names:
            yield f"jetpack = {self.jetpack!r} is not among jetpacks ({', '.join(names) or 'none'})"
        elif self.jetpacks and self.jetpack is None:
            yield f"jetpack is missing: name the release of opset, tensorrt and python, one of {', '.join(names)}"
        for release in self.jetpacks:
            if release.jetpack == self.jetpack:
                brought = {"tensorrt": release.tensorrt_major_minor, "python": release.python, "opset": release.opset}
                for key, value in brought.items():
                    if getattr(self, key) != value:
                        yield f"{key} = {getattr(self, key)!r}, but JetPack {release.jetpack} has {value!r}"

    def _memory_problems(self) -> Iterator[str]:
        memory, budget, workspace = self.memory_mib, self.memory_budget_mib, self.workspace_mib
        room = budget or memory
        if memory and budget and budget > memory:
            yield f"memory_budget_mib = {budget} is more than memory_mib = {memory}"
        if room and workspace and workspace >= room:
            yield f"workspace_mib = {workspace} leaves nothing of {room} MiB for the model"

    def _rail_problems(self) -> Iterator[str]:
        scope, total = self.energy_scope, self.total_rail
        known = ", ".join(self.rails) or "none"
        for key in ("sum_rails", "optional_rails"):
            missing = [rail for rail in getattr(self, key) if rail not in self.rails]
            if missing:
                yield f"{key} has {', '.join(missing)}, not among rails ({known})"
        if total is not None and total not in self.rails:
            yield f"total_rail = {total!r} is not among rails ({known})"
        if scope in ("module_input", "system_input") and total is None:
            yield f"energy_scope = {scope!r} needs a total_rail"
        if scope == "module_input" and self.sum_rails:
            yield "energy_scope = 'module_input' with sum_rails: the parts of a module's input do not add up to it"
        if scope == "sum_of_rails" and (total is not None or not self.sum_rails):
            yield (
                "energy_scope = 'sum_of_rails' needs sum_rails and no total_rail; "
                f"here {list(self.sum_rails)}, {total!r}"
            )
        if scope == "none" and (total is not None or self.sum_rails):
            yield "energy_scope = 'none', but there is a total_rail or sum_rails: say what they cover"
        if total in self.sum_rails or set(self.optional_rails) & set(self.sum_rails):
            yield "sum_rails holds the total_rail or an optional rail: it would be counted twice"

    def _power_mode_problems(self) -> Iterator[str]:
        for variant, default_key in (("", "default_power_mode"), ("super", "default_power_mode_super")):
            modes = [mode for mode in self.power_modes if mode.variant == variant]
            which = "power_modes" + (f" (variant {variant!r})" if variant else "")
            for field in ("name", "id"):
                counts = Counter(getattr(mode, field) for mode in modes)
                yield from (f"{which}: {field} {value!r} stands {n} times" for value, n in counts.items() if n > 1)
            default = getattr(self, default_key)
            if default is not None and default not in [mode.name for mode in modes]:
                yield f"{default_key} = {default!r} is not among {which} ({', '.join(m.name for m in modes) or 'none'})"


def _parts(value: Any) -> list[str]:
    """What a source may name inside a value: entries of a list; keys, and mode or release names, of a list of tables."""
    if not isinstance(value, tuple):
        return []
    tables = [entry for entry in value if isinstance(entry, (ProfilePowerMode, JetpackRelease))]
    keys = sorted({key for table in tables for key in table.model_fields_set})
    names = [table.jetpack if isinstance(table, JetpackRelease) else table.name for table in tables]
    return [entry for entry in value if isinstance(entry, str)] + keys + list(dict.fromkeys(names))

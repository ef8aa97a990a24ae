"""Rewrite a checkpoint of any size to 8-bit integers, and back, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from compress_core.checkpoints.configuration import beside_integers, beside_reals
from compress_core.checkpoints.headers import Place, Tensor
from compress_core.checkpoints.numbers import FLOATS
from compress_core.checkpoints.reading import Checkpoint, fitting, open_checkpoint
from compress_core.checkpoints.rewriting import Cast, Copy, Job, Round, Widen, scale_name
from compress_core.checkpoints.writing import Watch, refuse_taken, write_checkpoint
from compress_core.errors import ArtifactError

LEAST = 4096
"""Numbers below which a tensor stays as it is."""
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

Real = Literal["float32", "float16", "bfloat16"]
Others = Literal["keep", "float16", "bfloat16"]


@dataclass(frozen=True)
class Fate:
    """What became of a tensor."""

    name: str
    shape: tuple[int, ...]
    before: str
    """Its dtype, as safetensors calls it."""
    after: str
    reason: str = ""
    """Why it is no integer; empty if it is one."""
    error: float | None = None
    """rms(w - w') / rms(w) of a rounded tensor."""


@dataclass(frozen=True)
class Rewritten:
    """What became of a checkpoint."""

    source: Path
    target: Path
    bytes_before: int
    """Of the files with tensors."""
    bytes_after: int
    seconds: float
    tensors: tuple[Fate, ...]

    @property
    def changed(self) -> tuple[Fate, ...]:
        """Those whose dtype is another one now."""
        return tuple(fate for fate in self.tensors if fate.before != fate.after)

    @property
    def worst(self) -> Fate | None:
        """The rounded tensor with the largest error."""
        rounded = [fate for fate in self.tensors if fate.error is not None]
        return max(rounded, key=lambda fate: fate.error or 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"source": str(self.source), "target": str(self.target)}

    def summary(self) -> str:
        """In a line or two for a person."""
        text = f"{len(self.changed)} of {len(self.tensors)} tensors rewritten: {self.bytes_before:,} bytes to "
        text += f"{self.bytes_after:,} in {self.seconds:.1f} s"
        if worst := self.worst:
            text += f"\nlargest relative error (rms): {100 * (worst.error or 0):.2f} % of {worst.name}"
        return text


def shrink(
    source: Path | str,
    target: Path | str,
    *,
    group: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    least: int = LEAST,
    others: Others = "keep",
    shard_size: int | None = None,
    watch: Watch = lambda done, total: None,
) -> Rewritten:
    """Write a checkpoint whose weights are 8-bit integers, `NAME`, with float32 scales, `NAME_scale`.

    A weight is a tensor of real numbers with two or more axes. Memory stays far below the size of a tensor.

    Args:
        source: a safetensors file, or a folder with one, or with shards and their index.
        target: a new file, if its name ends with `.safetensors`, or a new folder.
        group: numbers of a row that share a scale; None for one scale per row, the first axis.
        include: patterns of names; if there are any, only these become integers.
        exclude: patterns of the names that do not.
        least: numbers below which a tensor stays.
        others: what becomes of the other real numbers.
        shard_size: bytes of a shard in a folder, 5 GB unless told.
        watch: is told how many bytes have just been written, and how many there will be.

    Raises:
        ArtifactError: the source is damaged or holds NaN, or the target is taken or cannot be written.
    """
    start = perf_counter()
    source, target = Path(source), Path(target)
    if group is not None and group < 1:
        raise ArtifactError(f"a group of {group} numbers", where="group", mend="name a number above 0")
    refuse_taken(target)
    found = open_checkpoint(source)
    names = list(found.by_name)
    allowed = fitting(names, tuple(include), "include") if include else set(names)
    allowed -= fitting(names, tuple(exclude), "exclude")
    reasons = _reasons(found, allowed, least, group)
    jobs: list[Job] = [_job(place, reasons[place.tensor.name], others, group) for place in found.places]
    rounded = [job.place.tensor for job in jobs if isinstance(job, Round)]
    size = write_checkpoint(
        target,
        jobs,
        metadata=found.metadata,
        stem=found.stem,
        shard_size=shard_size,
        beside=beside_integers(found, rounded, group),
        watch=watch,
    )
    fates = [_fate(place, job, reasons[place.tensor.name]) for place, job in zip(found.places, jobs, strict=True)]
    return Rewritten(source, target, found.bytes, size, perf_counter() - start, tuple(fates))


def restore(
    source: Path | str,
    target: Path | str,
    *,
    dtype: Real = "float32",
    shard_size: int | None = None,
    watch: Watch = lambda done, total: None,
) -> Rewritten:
    """Write a checkpoint of real numbers again, which every loader knows: each is its integer times its scale.

    Args:
        source: what `shrink` has written, or integers with scales by another tool in the same form.
        target: a new file, if its name ends with `.safetensors`, or a new folder.
        dtype: of the restored weights; the other tensors stay as they are.
        shard_size: bytes of a shard in a folder, 5 GB unless told.
        watch: is told how many bytes have just been written, and how many there will be.

    Raises:
        ArtifactError: the source is damaged or holds no integers with scales, or the target cannot be written.
    """
    start = perf_counter()
    source, target = Path(source), Path(target)
    refuse_taken(target)
    found = open_checkpoint(source)
    held = found.by_name
    scales = {name: held[scale_name(name)] for name in held if _is_scaled(name, held)}
    if not scales:
        mend = "name what `compress shrink` has written"
        raise ArtifactError("it holds no 8-bit integers with scales", where=str(source), mend=mend)
    gone = {place.tensor.name for place in scales.values()}
    kept = [place for place in found.places if place.tensor.name not in gone]
    jobs: list[Job] = [
        Widen(place, scales[place.tensor.name], DTYPES[dtype]) if place.tensor.name in scales else Copy(place)
        for place in kept
    ]
    size = write_checkpoint(
        target,
        jobs,
        metadata=found.metadata,
        stem=found.stem,
        shard_size=shard_size,
        beside=beside_reals(found),
        watch=watch,
    )
    fates = [_fate(place, job, "") for place, job in zip(kept, jobs, strict=True)]
    return Rewritten(source, target, found.bytes, size, perf_counter() - start, tuple(fates))


def _reasons(found: Checkpoint, allowed: set[str], least: int, group: int | None) -> dict[str, str]:
    """Why each tensor does not become integers; empty if it does."""
    held = found.by_name
    return {
        name: _reason(place.tensor, held, least, group) if name in allowed else "it is not chosen"
        for name, place in held.items()
    }


def _reason(tensor: Tensor, held: Mapping[str, Place], least: int, group: int | None) -> str:
    if tensor.dtype not in FLOATS:
        return f"it holds {tensor.dtype}"
    if len(tensor.shape) < 2:
        return "it has fewer than two axes"
    if tensor.count < max(least, 1):
        return f"it has fewer than {least} numbers"
    if tensor.name.endswith("_scale") and tensor.name.removesuffix("_scale") in held:
        return "it holds scales"
    if scale_name(tensor.name) in held:
        return f"there is a {scale_name(tensor.name)} already"
    if group and tensor.count // tensor.shape[0] % group:
        return f"its rows are no multiple of {group}"
    return ""


def _job(place: Place, reason: str, others: Others, group: int | None) -> Job:
    tensor = place.tensor
    if not reason:
        return Round(place, group or tensor.count // tensor.shape[0])
    if others != "keep" and tensor.dtype in FLOATS and reason != "it holds scales" and tensor.dtype != DTYPES[others]:
        return Cast(place, DTYPES[others])
    return Copy(place)


def _fate(place: Place, job: Job, reason: str) -> Fate:
    error = job.error.relative if isinstance(job, Round) else None
    return Fate(place.tensor.name, place.tensor.shape, place.tensor.dtype, job.outputs[0].dtype, reason, error)


def _is_scaled(name: str, held: Mapping[str, Place]) -> bool:
    """Whether a tensor holds integers that have scales.

    Raises:
        ArtifactError: it has scales that do not fit, or zero points, which `shrink` never writes.
    """
    place, scale = held[name], held.get(scale_name(name))
    if place.tensor.dtype != "I8" or scale is None:
        return False
    shape, tensor = scale.tensor.shape, place.tensor
    fit = scale.tensor.dtype in FLOATS and scale.tensor.count > 0 and tensor.count % scale.tensor.count == 0
    if not fit or (scale.tensor.count > 1 and shape[0] != tensor.shape[0]):
        what = f"the scales of {name!r} have shape {list(shape)}, which does not fit {list(tensor.shape)}"
        raise ArtifactError(what, where=str(scale.file), mend="name what `compress shrink` has written")
    if f"{name}_zero_point" in held:
        mend = "restore it with the tool that has written it"
        raise ArtifactError(f"{name!r} has zero points", where=str(place.file), mend=mend)
    return True

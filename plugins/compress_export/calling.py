"""Calling a file in its runtime as the network was called: the same arguments, the same kind of output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from compress_core.errors import ArtifactError, ModelError
from compress_export.signature import Signature, Tree, bind, flatten, rebuild

_PLACE = re.compile(r"Exception from \S+:\d+:$|Check '.*' failed at \S+:\d+:$")

Compute = Callable[[list[Tensor]], Sequence[Tensor]]
"""The tensors of the output for the tensors of the arguments, both in the order in which the signature lists them."""


def caller(signature: Signature, compute: Compute, runtime: str, where: str) -> Callable[..., Any]:
    """A function that is called like the network.

    Args:
        signature: how the network is called.
        compute: what the runtime does.
        runtime: its name, for messages.
        where: the file.
    """

    def call(*arguments: Any, **keywords: Any) -> Any:
        tensors: list[Tensor] = []
        tree = flatten(bind(signature.parameters, arguments, keywords), tensors, "the input")
        if tree != signature.inputs:
            raise ModelError(
                f"it was exported for the arguments {_shown(signature.inputs)} and gets {_shown(tree)}",
                where=where,
                mend="export it with an example of such arguments",
            )
        for entry, tensor in zip(signature.takes, tensors, strict=False):
            _check_limits(entry, tensor, signature.limits, where)
        try:
            found = compute([tensor.detach().cpu() for tensor in tensors])
        except Exception as error:
            raise ModelError(
                f"{runtime} cannot run it: {first_line(error)}", where=where, mend="check the input's shape"
            ) from error
        return rebuild(signature.output, found)

    return call


def _check_limits(entry: Mapping[str, Any], tensor: Tensor, limits: Mapping[str, int], where: str) -> None:
    """Refuse more than the network takes: some runtimes compute something else then."""
    for axis, size in zip(entry["shape"], tensor.shape, strict=False):
        if size > limits.get(str(axis), size):
            raise ModelError(
                f"{entry['name']} has {size} along {axis}, and the network takes at most {limits[axis]}",
                where=where,
                mend="cut the input",
            )


def damaged(path: str, error: Exception, *, missing: bool) -> ArtifactError:
    """What to say of a file that cannot be opened."""
    return ArtifactError(
        "there is no such file" if missing else f"it is damaged: {first_line(error)}",
        where=path,
        mend="export it again with `dvc repro`, or fetch it again with `dvc pull`",
    )


def signature_in(text: str | None, path: str) -> Signature:
    """The signature that a file carries.

    Raises:
        ArtifactError: it carries none.
    """
    if text is None:
        raise ArtifactError("it does not say how the network is called", where=path, mend="export it again")
    try:
        return Signature.from_json(text)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error, missing=False) from error


def first_line(error: Exception) -> str:
    """Of its message, the first line that says something: none that names a place in OpenVINO's own code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not _PLACE.match(line)), lines[0] if lines else type(error).__name__)


def _shown(tree: Tree) -> str:
    return json.dumps(tree["dict"], sort_keys=True).replace('"', "")

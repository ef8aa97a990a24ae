"""What `config.json` says of the integers, in the words of compressed-tensors.

The format stands in the group as well: without it, compressed-tensors 0.20 infers another one, looks for packed
weights, and the loader starts the layers anew at random.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress_core.checkpoints.headers import AGAIN, Tensor
from compress_core.checkpoints.reading import Checkpoint
from compress_core.errors import ArtifactError

CONFIG = "config.json"
KEY = "quantization_config"
METHOD, FORMAT = "compressed-tensors", "int-quantized"


def beside_integers(checkpoint: Checkpoint, rounded: Sequence[Tensor], group: int | None) -> dict[str, Path | str]:
    """The other files of a folder, with the configuration naming the layers whose weights become integers.

    Raises:
        ArtifactError: the configuration is damaged, or says already how the weights are quantized.
    """
    files: dict[str, Path | str] = {path.name: path for path in checkpoint.beside}
    if CONFIG in files:
        config = _read(checkpoint.path / CONFIG)
        if KEY in config:
            mend = "`compress restore` it first, or name the safetensors file instead of the folder"
            raise ArtifactError("the weights are quantized already", where=str(checkpoint.path / CONFIG), mend=mend)
        files[CONFIG] = _text(config | {KEY: _quantization(rounded, group)})
    return files


def beside_reals(checkpoint: Checkpoint) -> dict[str, Path | str]:
    """The other files of a folder, with a configuration that says nothing of integers."""
    files: dict[str, Path | str] = {path.name: path for path in checkpoint.beside}
    if CONFIG in files:
        config = _read(checkpoint.path / CONFIG)
        files[CONFIG] = _text({key: value for key, value in config.items() if key != KEY})
    return files


def _quantization(rounded: Sequence[Tensor], group: int | None) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
    grid = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    layers = sorted(one.name.removesuffix(".weight") for one in rounded if one.name.endswith(".weight"))
    scheme = {"format": FORMAT, "targets": layers, "weights": weights | grid}
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "ignore": [],
        "config_groups": {"group_0": scheme},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"it is damaged: {error}", where=str(path), mend=AGAIN) from error
    if not isinstance(found, dict):
        raise ArtifactError("it is damaged: it holds no names", where=str(path), mend=AGAIN)
    return found


def _text(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"

"""The same step in another process, where strings hash otherwise, so that sets of names have another order.

One server is started per process of the kit, since importing torch and the plugins is what takes time. It forks for
every request, so that nothing of one request is left for the next. It runs no tensor operation itself: what has a pool
of threads cannot be forked.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from compress_core.catalog import catalog
from compress_core.errors import PluginError
from compress_core.parts import Technique
from compress_core.testing.report import ConformanceError
from compress_core.testing.subject import Subject, written

SECONDS = 600
"""After which a step there is given up."""
_SERVING = "COMPRESS_KIT_SERVES"
"""Set in the server, which asks no server of its own."""

_NEEDED = ("torch._dynamo", "torchmetrics.classification")
"""What every training imports, and takes long: torch's optimizers want the first."""


def hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    """The hash of each file."""
    return {name: sha256(content).hexdigest() for name, content in files.items()}


def hashes_elsewhere(technique: Technique, net: str) -> dict[str, str] | None:
    """The hashes of the files of what a technique makes of a network of the kit, in another process.

    Returns:
        the hash of each file, or None if the technique cannot be imported by its name there, as is so for what is
        defined in a function or in a notebook.

    Raises:
        ConformanceError: it fails there.
    """
    if _SERVING in os.environ or not hasattr(os, "fork"):
        return None
    try:
        pickled = pickle.dumps(technique).hex()
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    places = [os.path.abspath(entry) for entry in sys.path]
    answer = _ask(
        {"technique": pickled, "net": net, "path": places, "folder": os.getcwd(), "threads": torch.get_num_threads()}
    )
    if "error" in answer:
        raise ConformanceError(
            f"in another process it fails: {answer['error']}", mend="use nothing that only one process has"
        )
    return answer.get("hashes")


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer: dict[str, Any] = json.loads(server.stdout.readline() or "{}")
    return answer


@lru_cache(maxsize=1)
def _server() -> subprocess.Popen[str]:
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    server = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": other, _SERVING: "1"},
    )
    atexit.register(server.communicate)
    return server


def serve() -> None:
    """Answer each line of the standard input, a request, by a line: the hashes, an error, or `{}`."""
    for module in _NEEDED:
        import_module(module)
    with suppress(PluginError):
        catalog()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a plugin prints is no answer
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(SECONDS)
                print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)
                status = 0
            finally:
                os._exit(status)
        if os.waitpid(child, 0)[1]:
            print("{}", file=answers, flush=True)


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    sys.path[:] = request["path"]
    os.chdir(request["folder"])
    torch.set_num_threads(request["threads"])
    technique: Technique = pickle.loads(bytes.fromhex(request["technique"]))
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Subject(technique).again(request["net"])
            return {"hashes": hashes(written(made, request["net"], Path(folder) / "made"))}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}

"""Serves the flow as the deployment `compress-model/local`: start it in the workspace, `python flows/serve.py`."""

from __future__ import annotations

from pathlib import Path

from compress_model import compress_model

if __name__ == "__main__":
    compress_model.serve(name="local", limit=1, parameters={"workspace": str(Path.cwd())})

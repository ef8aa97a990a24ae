"""What pytest must know of this folder."""

from __future__ import annotations

collect_ignore = ["example_plugin"]  # a package of its own: test_example_plugin.py installs it and runs its tests

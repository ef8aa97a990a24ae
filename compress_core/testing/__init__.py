"""The conformance kit for authors of plugins.

    @pytest.mark.parametrize("check", checks_for(Sparsify(keep=2, of=4)), ids=str)
    def test_it_conforms(check):
        check()

`check_technique` runs all the checks at once and returns what the technique refuses and why.
`check_watcher` plays a stage's life to a watcher. The networks and the data of the kit are there
for tests of your own: `make_net`, `digits`, `make_run`, `Epochs`.
"""

from __future__ import annotations

from compress_core.testing.checks import Check, check_technique, checks_for
from compress_core.testing.digits import Classification, Epochs, digits, make_run
from compress_core.testing.nets import NETS, factory_of, make_net
from compress_core.testing.report import ConformanceError, Refusal, Report
from compress_core.testing.watching import check_watcher

__all__ = [
    "NETS",
    "Check",
    "Classification",
    "ConformanceError",
    "Epochs",
    "Refusal",
    "Report",
    "check_technique",
    "check_watcher",
    "checks_for",
    "digits",
    "factory_of",
    "make_net",
    "make_run",
]

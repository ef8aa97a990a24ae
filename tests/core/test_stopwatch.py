"""The time of a changed network beside the one that it was."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from compress_core.stopwatch import Stopwatch, exporter_of
from compress_core.timing import Timing
from tests.support import make, make_run


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_both_networks_run_in_the_runtime_with_the_batch_and_the_ratio_is_that_of_the_medians(runtime, monkeypatch):
    answers = {}

    def timed(calls, opponents, *, seconds):
        answers.update({name: call() for name, call in calls.items()})
        assert opponents == ["dense"]
        return Timing({"dense": [4.0, 6.0, 5.0], "changed": [1.0, 3.0, 2.0]}, disturbed=False, attempts=1)

    monkeypatch.setattr("compress_core.stopwatch.measure", timed)
    model = make("conv").train()
    assert Stopwatch(model, exporter_of(runtime), 5, make_run())(deepcopy(model)) == pytest.approx(1 / 2.5)
    torch.testing.assert_close(answers["dense"], answers["changed"])
    assert answers["dense"].shape == (5, 10)
    assert answers["dense"].grad_fn is None
    assert model.training


def test_the_dense_network_is_measured_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    watch = Stopwatch(model, None, 2, make_run())
    before = watch.dense()
    with torch.no_grad():
        model[1].weight.zero_()
    assert torch.equal(watch.dense(), before)

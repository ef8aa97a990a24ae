from __future__ import annotations

import gc
from collections.abc import Callable
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress_core.modes import torch_threads
from compress_core.timing import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    calls_per_block,
    interval_rank,
    is_disturbed,
    measure,
    median_interval,
    ratios,
    rounds_within,
)


class FakeMachine:
    """A clock, and calls that take exactly as long as they are told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += seconds()

        return run


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (9, 2), (12, 3), (20, 6), (25, 8), (40, 14)])
def test_the_ranks_of_the_median_s_interval_are_those_of_the_sign_test(count: int, rank: int) -> None:
    # two-sided at 5 %: 6 values miss with 2 * 1/64 = 3.1 %, 9 with 2 * (1 + 9)/512 = 3.9 %
    assert interval_rank(count) == rank


@given(st.integers(6, 200))
def test_the_interval_covers_the_median_and_one_rank_further_would_not(count: int) -> None:
    rank = interval_rank(count)
    missed = [2 * sum(comb(count, i) for i in range(k)) / 2**count for k in (rank, rank + 1)]
    assert missed[0] <= 0.05 < missed[1]


@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=60))
def test_the_interval_encloses_its_median(values: list[float]) -> None:
    found = median_interval(values)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


def test_a_speedup_is_the_opponent_s_time_over_the_own_time_round_by_round() -> None:
    assert ratios([4.0, 9.0, 6.0], [2.0, 3.0, 6.0]) == [2.0, 3.0, 1.0]


def test_blocks_that_agree_are_not_disturbed_and_wide_or_drifting_ones_are() -> None:
    assert not is_disturbed([1.00, 1.01, 0.99, 1.02, 1.00, 1.01, 0.99, 1.00])
    assert not is_disturbed([1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0]), "one outlier moves neither quartile"
    assert is_disturbed([1.0, 1.3, 1.0, 1.3, 1.0, 1.3, 1.0, 1.3]), "the middle half is 30 % wide"
    assert is_disturbed([1.0, 1.0, 1.0, 1.0, 1.12, 1.12, 1.12, 1.12]), "12 % slower in the second half"
    assert not is_disturbed([1.0, 1.0, 1.0, 1.0, 1.08, 1.08, 1.08, 1.08])


def test_a_block_has_the_calls_that_fill_it_and_at_least_one() -> None:
    assert calls_per_block(0.001, 0.015) == 15
    assert calls_per_block(2.0, 0.015) == 1
    assert rounds_within(1.5, 0.1) == 15
    assert rounds_within(1.5, 10.0) == FEWEST_ROUNDS
    assert rounds_within(1.5, 1e-6) == MOST_ROUNDS


def test_a_measurement_finds_the_times_and_the_ratios_that_were_put_in() -> None:
    machine = FakeMachine()
    calls = {
        "dense": machine.call("dense", lambda: 0.004),
        "small": machine.call("small", lambda: 0.001),
        "slow": machine.call("slow", lambda: 0.008),
    }
    found = measure(calls, ["dense"], seconds=1.0, clock=machine.clock)
    assert found.attempts == 1
    assert not found.disturbed
    assert found.time("small").value == pytest.approx(0.001)
    assert found.speedup("small", "dense").value == pytest.approx(4.0)
    assert found.speedup("slow", "dense").value == pytest.approx(0.5)
    latency = found.latency("small", "dense", "slow", batch=1, threads=2).to_dict()
    assert latency["milliseconds"]["value"] == pytest.approx(1.0)
    assert latency["speedup"]["value"] == pytest.approx(4.0)
    assert latency["speedup_to_eager"]["value"] == pytest.approx(8.0)


def test_a_machine_that_slows_down_for_all_alike_does_not_change_the_ratio() -> None:
    machine = FakeMachine()
    calls = {
        "dense": machine.call("dense", lambda: 0.02 * (1 + machine.now)),
        "half": machine.call("half", lambda: 0.01 * (1 + machine.now)),
    }
    found = measure(calls, [], seconds=0.5, clock=machine.clock)
    assert found.seconds["dense"][-1] > 1.3 * found.seconds["dense"][0]
    assert found.speedup("half", "dense").value == pytest.approx(2.0, rel=0.03)


def test_the_calls_are_interleaved_rather_than_one_after_the_other() -> None:
    machine = FakeMachine()
    calls = {name: machine.call(name, lambda: 0.02) for name in "ab"}
    rounds = measure(calls, ["a"], seconds=0.4, clock=machine.clock).rounds
    assert "".join(machine.log[-2 * rounds :]).startswith("abbaabba")


def test_a_disturbed_measurement_is_made_again_and_then_trusted() -> None:
    machine = FakeMachine()
    calls = {"dense": machine.call("dense", lambda: 0.02 * (1 + (len(machine.log) % 3 if machine.now < 0.8 else 0)))}
    found = measure(calls, ["dense"], seconds=0.5, clock=machine.clock)
    assert found.attempts == 2
    assert not found.disturbed


def test_a_measurement_that_stays_disturbed_is_flagged_after_three_attempts() -> None:
    machine = FakeMachine()
    calls = {"dense": machine.call("dense", lambda: 0.02 * (1 + len(machine.log) % 3))}
    found = measure(calls, ["dense"], seconds=0.5, clock=machine.clock)
    assert (found.attempts, found.disturbed) == (3, True)
    assert found.latency("dense", "dense", "dense", batch=1, threads=1).disturbed


def test_one_attempt_keeps_to_its_seconds() -> None:
    machine = FakeMachine()
    calls = {str(index): machine.call(str(index), lambda: 0.0005) for index in range(9)}
    measure(calls, ["0"], seconds=2.0, clock=machine.clock)
    assert machine.now < 2.5


def test_the_garbage_collector_rests_in_the_blocks_and_works_again_after_them() -> None:
    machine = FakeMachine()
    seen: set[bool] = set()

    def look() -> float:
        seen.add(gc.isenabled())
        return 0.02

    measure({"dense": machine.call("dense", look)}, ["dense"], seconds=0.1, clock=machine.clock)
    assert seen == {False}
    assert gc.isenabled()


def test_the_number_of_threads_is_set_and_given_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before

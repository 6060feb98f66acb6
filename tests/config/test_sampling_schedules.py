"""Loop counts and guidance over the steps of a sampler."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.untrained_samplers import untrained

from eltlab.config.sampling_schedules import evaluations, guidance_scale, is_loop_schedule, loop_schedule


@pytest.mark.parametrize(
    ("line", "steps", "counts"),
    [
        ("4to1", 4, [4, 3, 2, 1]),
        ("1to4", 4, [1, 2, 3, 4]),
        ("4to1", 1, [4]),
        ("4to1", 2, [4, 1]),
        ("2to2", 3, [2, 2, 2]),
        ("1to2", 3, [1, 2, 2]),  # the half is rounded up
        ("12to3", 4, [12, 9, 6, 3]),
    ],
)
def test_a_ramp_goes_from_its_first_to_its_last_count(line, steps, counts):
    assert loop_schedule(line, steps) == counts


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 60))
def test_a_ramp_has_the_nearest_counts_to_a_straight_line(first, last, steps):
    counts = loop_schedule(f"{first}to{last}", steps)
    exact = [first + (last - first) * step / (steps - 1) for step in range(steps)]
    assert (counts[0], counts[-1]) == (first, last)
    assert all(abs(n - x) <= 0.5 + 1e-9 for n, x in zip(counts, exact, strict=True))


@pytest.mark.parametrize("wrong", ["4 to 1", "0to4", "4to", "to4", "4to-1", "four", "04to1", ""])
def test_invalid_ramps_are_refused(wrong):
    assert not is_loop_schedule(wrong, 4)
    with pytest.raises(ValueError, match="4to1"):
        loop_schedule(wrong, 4)


def test_guidance_scale_over_the_steps():
    assert [guidance_scale(3.0, "constant", k, 4) for k in range(4)] == [3.0] * 4
    assert [guidance_scale(3.0, "linear", k, 4) for k in range(4)] == [1.5, 2.0, 2.5, 3.0]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
def test_evaluations_agree_with_what_a_sampler_runs(guidance, schedule):
    model = untrained(f"sampler.guidance={guidance}", f"sampler.guidance_schedule={schedule}")
    rows = []
    model.backbone.register_forward_hook(lambda _, given, done: rows.append(len(given[0])))
    model.sample([1, 2, 3])
    assert [row // 3 for row in rows] == evaluations(guidance, schedule, 4)


@pytest.mark.parametrize("loops", [[2, 2], [2, 2, 2, 0]])
def test_loop_schedules_of_the_wrong_length_or_below_one_are_refused(loops):
    with pytest.raises(ValueError, match="give a count, a ramp such as 4to1, or 4 counts"):
        loop_schedule(loops, 4)

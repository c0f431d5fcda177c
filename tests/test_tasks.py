"""Long loops tell a display how far they are."""

import pytest

from lit_generative.utils.tasks import fraction, show_tasks, tracked


@pytest.fixture
def seen():
    """What a display was called with: names and counts, and the fraction that is done."""
    calls = []
    show_tasks(lambda tasks: calls.append(([(t.name, t.done, t.total) for t in tasks], tasks and fraction(tasks))))
    yield calls
    show_tasks(None)


def test_loops_within_loops_are_a_part_of_a_pass(seen):
    assert [(i, j) for i in tracked(range(2), "outer") for j in tracked("ab", "inner")] == [
        (0, "a"), (0, "b"), (1, "a"), (1, "b")
    ]  # fmt: skip
    shown = [call for call in seen if len(call[0]) == 2]
    assert [share for _, share in shown] == [0, 0.25, 0.5, 0.75]
    assert shown[-1][0] == [("outer", 1, 2), ("inner", 1, 2)]
    assert seen[-1] == ([], [])


def test_a_loop_that_is_left_early_ends(seen):
    for _ in tracked(range(3), "left"):
        break
    with pytest.raises(ZeroDivisionError):
        [1 // i for i in tracked(range(3), "fails")]
    assert [call for call in seen if not call[0]] == [([], [])] * 2


def test_without_a_display_a_loop_is_a_loop():
    assert list(tracked([1, 2], "nobody looks")) == [1, 2] and list(tracked([], "empty")) == []

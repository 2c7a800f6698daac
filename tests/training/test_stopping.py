from __future__ import annotations

from diffbio_sc.training.stopping import EarlyStopping


def follow(stopping, losses):
    """Epochs taken until the end, and the epochs that were the best so far."""
    best = []
    for epoch, loss in enumerate(losses, start=1):
        if stopping.update(loss):
            best.append(epoch)
        if stopping.stops:
            return epoch, best
    return None, best


def test_it_stops_after_patience_epochs_without_progress():
    assert follow(EarlyStopping(3, 0.0), [5, 4, 4.5, 4.1, 4, 3]) == (5, [1, 2])


def test_small_steps_are_no_progress_but_may_be_the_best():
    assert follow(EarlyStopping(2, 0.5), [5, 4.8, 4.6, 1]) == (3, [1, 2, 3])


def test_small_steps_add_up_to_progress():
    assert follow(EarlyStopping(2, 0.5), [5, 4.7, 4.4, 4.1, 3.8]) == (None, [1, 2, 3, 4, 5])


def test_a_loss_that_is_not_finite_is_never_the_best():
    nan, inf = float("nan"), float("inf")
    assert follow(EarlyStopping(4, 0.0), [nan, 2, -inf, nan, inf, nan, 1]) == (6, [2])


def test_without_patience_it_never_stops():
    assert follow(EarlyStopping(None, 0.0), [1] * 100) == (None, [1])

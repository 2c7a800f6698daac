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
    assert follow(EarlyStopping(3), [5, 4, 4.5, 4.1, 4, 3]) == (5, [1, 2])


def test_a_loss_that_is_not_finite_is_never_the_best():
    nan, inf = float("nan"), float("inf")
    assert follow(EarlyStopping(4), [nan, 2, -inf, nan, inf, nan, 1]) == (6, [2])


def test_without_patience_it_never_stops():
    assert follow(EarlyStopping(None), [1] * 100) == (None, [1])


def test_small_falls_are_kept_but_do_not_renew_patience():
    stopping = EarlyStopping(3, min_progress=0.1)
    assert follow(stopping, [10, 8.9, 8.8, 8.7, 8.6, 1]) == (5, [1, 2, 3, 4, 5])
    assert stopping.best == 8.6

"""What an interval, a chromosome table, a bin axis, a signal and an overlap along a genome are: arrays, no AnnData."""

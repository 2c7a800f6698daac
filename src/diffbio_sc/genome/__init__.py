"""What an interval, a chromosome table, a signal, an overlap along a genome is: arrays, no files, no AnnData."""

"""Runs over whole data (genomes, slides, maps) on arrays and intervals: beneath the faces, without AnnData."""

"""Whole-data runs over blocks of a matrix or intervals of a genome: they know arrays, but no AnnData."""

"""Whole-data runs over blocks, intervals or chromosomes: arrays in, arrays out, no AnnData."""

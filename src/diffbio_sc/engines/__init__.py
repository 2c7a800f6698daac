<<<<<<< HEAD
"""Whole-data runs over blocks, intervals or chromosomes: arrays in, arrays out, no AnnData."""
=======
"""Whole-data runs over blocks of a matrix or intervals of a genome: they know arrays, but no AnnData."""
>>>>>>> main

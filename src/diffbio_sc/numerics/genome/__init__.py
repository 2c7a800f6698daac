"""Mathematics of signals and contacts along the genome: arrays in, arrays out."""

"""Statistics along the genome."""

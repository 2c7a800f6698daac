"""Statistics along a genome: pile-ups, backgrounds, tails, peaks."""

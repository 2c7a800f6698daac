"""Hidden Markov chains."""

from ._proportions import proportions

"""Models of counts: likelihoods, regression, signatures, presence."""

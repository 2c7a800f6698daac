"""Linear models of many outputs on sparse and dense columns: ridge regression, logistic regression, their penalties."""

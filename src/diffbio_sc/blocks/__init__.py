"""Matrices of any kind, in memory, in files or on a cluster, worked through in blocks of rows."""

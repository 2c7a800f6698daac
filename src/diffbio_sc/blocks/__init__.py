"""Matrices of any kind, in memory, in files or on a cluster, worked through in blocks of rows or columns.

``interface`` is what all kinds of matrices can do, ``matrix`` and ``lazy`` are the kinds, ``plan`` is how rows fall
into blocks, ``steps`` what passes over the blocks compute, ``shuffle`` how blocks of rows become blocks of columns,
``kept`` how a file is read once for many passes, ``cluster`` who does the work.
"""

"""Matrices of any kind, in memory, in files or on a cluster, worked through in blocks of rows or columns.

``matrix`` is the one interface, ``plan`` how rows fall into blocks, ``steps`` what passes over the blocks compute,
``shuffle`` how blocks of rows become blocks of columns.
"""

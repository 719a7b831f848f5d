"""Exact nearest centers of many rows: what the stages cluster and label share.

:mod:`mlcd.neighbors.exact` finds them, with the same result whatever the block size, number of
threads, BLAS or device; :mod:`mlcd.neighbors.rows` streams the rows from files within a memory
limit.
"""

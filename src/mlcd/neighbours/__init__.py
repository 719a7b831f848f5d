"""Exact nearest centres of many rows: what the stages cluster and label share.

:mod:`mlcd.neighbours.exact` finds them, with the same result whatever the block size, number of
threads, BLAS or device; :mod:`mlcd.neighbours.rows` streams the rows from files within a memory
limit.
"""

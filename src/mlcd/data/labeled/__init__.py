"""Labeled data sets of many forms, read as samples."""

"""The files in which stages meet. docs/formats.md describes each for people.

A stage reads and writes other stages' data through these modules only.
"""

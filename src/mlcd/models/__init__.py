"""Encoders: `frozen` ones whose features are clustered, and the `trainable` one that learns."""

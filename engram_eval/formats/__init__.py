"""Checkpoints under the official demonstration's names; parity with vectors stored elsewhere."""

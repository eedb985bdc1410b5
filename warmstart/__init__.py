"""Numerical fits remembered, resumable and quick to start."""

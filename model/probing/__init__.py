"""Probes: what frozen embeddings are worth to small heads, beside what simpler features are worth to them."""

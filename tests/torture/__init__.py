"""Torture: runs that are killed, poisoned, doubled, starved and lied to, and what is left of their output."""

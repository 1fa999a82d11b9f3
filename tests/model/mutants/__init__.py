"""Mutants: ways to break a model file, each a function that stands for something that goes wrong in the world.

A mutator changes the file's `ModelProto` in place. Its docstring says what it stands for, `mutant` says which files it
is tried on, and `MUTANTS` has every pair of the two.
"""

from mutants import encoder, files, inputs, metadata, outputs, recurrence, weights
from mutants.bases import MUTANTS

MODULES = (weights, inputs, encoder, recurrence, outputs, files, metadata)  # imported, they have registered theirs

__all__ = ["MODULES", "MUTANTS"]

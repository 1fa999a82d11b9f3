"""Demo: the synthetic planet and the model that is shipped for it."""

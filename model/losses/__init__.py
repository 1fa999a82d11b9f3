"""Losses of the self-supervised training, one file each; every one is that of the batch of all ranks together."""

"""The model side: profile, encoders, checkpoints, quantiser, export and gate."""

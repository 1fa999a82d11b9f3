"""The training: from a shard set and a config to a checkpoint that `model export` takes."""

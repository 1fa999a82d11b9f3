"""The steps of the pipeline, in the order of the data: plain functions with thin Beam transforms over them."""

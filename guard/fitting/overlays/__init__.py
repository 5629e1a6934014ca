"""Low-rank overlays from changed weights, for models of any kind.

`reading.read_difference` reads a checkpoint or a file of adapters and gives the change of each
layer; `cutting` records what these changes do to a model's own states and cuts them to a rank;
`factors` writes the result as tensors and settings of an artifact. A fit that trains an overlay
begins at `factors`.
"""

"""The commands of `guard`, one module or folder each."""

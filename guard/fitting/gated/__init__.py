"""Guards of language models behind the gate of a prompt: subspaces, and imported overlays."""

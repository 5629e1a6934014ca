"""LoRA adapters of a language model, for the rows of a batch that ask for one."""

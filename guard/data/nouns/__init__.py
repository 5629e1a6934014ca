"""Names of things from WordNet: their senses, kinds and neighbours."""

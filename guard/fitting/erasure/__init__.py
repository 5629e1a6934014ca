"""From the name of a concept, and documents about it, to a guard: the work that is the same for all
concepts is done once for a model, in its profile."""

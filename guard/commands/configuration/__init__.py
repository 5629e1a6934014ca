"""Commands on a configuration: checks, entries that are added, thresholds that are set."""

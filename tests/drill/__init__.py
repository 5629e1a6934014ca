"""A drill of faults: clients ask a fleet of proxies while everything around them breaks."""

"""Models on disk and in memory: sources, recipes, the cache, and models as fitting and evaluation
use them."""

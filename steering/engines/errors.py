"""What adapters raise of models that guards cannot follow."""


class Unfollowed(RuntimeError):
    """A forward that guards cannot follow."""


class UnsupportedModel(ValueError):
    """A model that, as it was loaded, cannot take guards of some seam."""


class Unsupported(ValueError):
    """The configuration of an engine does not work with guards."""

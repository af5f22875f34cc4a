"""Ways to reach a model, and the command line: what stands between the engine and the world."""

from adapters.registry import open_models, open_student

__all__ = ["open_models", "open_student"]

"""The reference backend: NumPy, any floating dtype, any intermediate."""

from refvit.backends.numpy.interpreter import compile_graph

__all__ = ["compile_graph"]

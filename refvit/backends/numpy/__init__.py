"""The reference backend: NumPy, any floating dtype, any intermediate."""

from refvit.backends.numpy.interpreter import check_threads, compile_graph

__all__ = ["check_threads", "compile_graph"]

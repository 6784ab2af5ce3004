"""Converters from the layouts of public checkpoints to refvit's own weights files, and back.

A layout is recognised by its exact keys or refused. Every key of the source is used exactly once and every tensor of the model
is filled; otherwise the error lists what is missing, unexpected or of another shape. Nothing is run, and nothing is guessed:
what a layout implies about channel order or pre-processing is written into the result.
"""

from weights_convert.convert import convert, convert_checkpoint, convert_file
from weights_convert.export import export, export_file

__all__ = ["convert", "convert_checkpoint", "convert_file", "export", "export_file"]

"""Readers of weights files of every origin: nothing in a file is executed, and no framework is needed."""

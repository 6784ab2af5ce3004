"""For tests that load these writers by their path; the writers are helpers.handmade."""

from helpers.handmade import *  # noqa: F403

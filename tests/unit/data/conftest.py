"""The same examples in every run, and no bound on the time of one: the first call of a test pays for warm-up."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

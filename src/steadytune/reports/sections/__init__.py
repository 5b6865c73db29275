"""The sections of a report, each from a study."""

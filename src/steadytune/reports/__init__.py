"""Reports: what the records say, and whether a method helped. Reads records only; never imports torch."""

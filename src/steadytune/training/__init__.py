"""Training: the Trainer subclass, one run from data to record, and what is saved."""

"""The pipeline as a whole: start and stop, maintenance, status, the state of the machine, erasure."""

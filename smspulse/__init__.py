"""The command line, the embedded broker, the supervisor and the simulator: what puts the rooms together."""

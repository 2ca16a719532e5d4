"""The command line, a file for each group of commands. Heavy imports happen inside the commands."""

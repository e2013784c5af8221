"""The command line's commands, and the options they share."""

"""The person's side: pipeline, command line, progress and plots."""

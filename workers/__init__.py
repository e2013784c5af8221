"""Running: Ray actors for trials, Ray tasks for profiles, the spool. It alone knows Ray."""

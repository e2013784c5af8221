"""Running: Ray actors for trials, Ray tasks for profiles, the spool; the only package that knows Ray."""

"""Running: Ray Tune trials, Ray profile tasks, result spool; the only package that knows Ray."""

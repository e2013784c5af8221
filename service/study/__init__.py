"""A study on its way: driver, pipeline, profile, proxy search, trials."""

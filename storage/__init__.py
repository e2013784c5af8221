"""Keeping: the SQL schema, its migrations and the repository; the only package that knows SQL."""

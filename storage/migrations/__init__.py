"""Alembic's environment: the steps from each revision of the schema to the next."""

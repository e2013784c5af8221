"""The source files that travel with an artefact: they import nothing of bitfront."""

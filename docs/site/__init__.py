"""What the site adds to the files of `docs/`: generated pages, files of the repository."""

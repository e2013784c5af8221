"""What Python programs and the command line ask of bitfront: databases, studies, what they found.

`bitfront` itself has these names; see `docs/python.md`.
"""

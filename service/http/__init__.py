"""The HTTP interface and the web page: what `bitfront serve` answers with.

The process that serves reads the database and nothing else: it loads neither torch nor Ray. Studies
run in processes of their own, which outlive it.
"""

"""The web page: the same answers as the interface's, as HTML."""

"""The tests: each file says what is true of one part."""

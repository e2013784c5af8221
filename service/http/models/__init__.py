"""What the routes answer: every field with its type and its unit."""

"""Pictures of a study: its front, and the bits of one configuration."""

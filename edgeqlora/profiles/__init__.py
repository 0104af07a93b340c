"""Hardware profiles: read, checked, shown."""

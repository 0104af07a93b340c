"""What stands in the way of a sound measurement."""

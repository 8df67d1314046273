"""ptk: adds to preference data who would prefer what, and keeps every result in a versioned catalog."""

"""In two lines, for nobody knows what the overrides of a base are for."""

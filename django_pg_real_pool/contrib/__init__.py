"""For other packages: each module needs one that this one does not depend on."""

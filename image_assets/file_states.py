"""What the ledger says that became of a file, in one word."""

CURRENT = "current"  # it is there, as an image that could be read
PENDING = "pending"  # somebody may still be writing it
QUARANTINED = "quarantined"  # it is there, and no image that is taken in
MISSING = "missing"  # it is there no more

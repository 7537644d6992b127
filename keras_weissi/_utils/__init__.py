"""What all of the package uses; nothing here is public."""

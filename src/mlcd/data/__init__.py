"""Files that stages exchange, and images: how they are written, read and decoded."""

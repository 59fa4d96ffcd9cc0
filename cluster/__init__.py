"""What machines there are and who gets which processor. Ray lives behind this door."""

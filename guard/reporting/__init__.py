"""Reports: one HTML page that holds all it shows, plots included, and opens anywhere."""

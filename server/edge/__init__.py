"""What is the same for every request, whatever answers it: paths, methods, origins, silences."""

"""Guards from names, measured on concepts and questions that no fit sees."""

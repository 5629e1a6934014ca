"""What touches a forward pass: the maths of each method, the table, the seams, the engines."""

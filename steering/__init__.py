"""What touches a forward pass: the maths of each method, the stacked table, the seams, the engines."""

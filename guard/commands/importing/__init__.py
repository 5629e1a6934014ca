"""`guard import`: what a published eraser changes in its model, as a guard."""

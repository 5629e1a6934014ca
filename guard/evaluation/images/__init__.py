"""Suite `images`: is the concept kept out of the images, and only the concept."""

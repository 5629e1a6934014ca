"""Screens of images: reading the images of requests and answers, and what follows from it."""

"""Accuracy of a bundle on the user's own pictures, and scores that mean what they say. Needs numpy and the runtime."""

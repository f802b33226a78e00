"""Distillation: from the teacher at hand to the student that a device holds."""

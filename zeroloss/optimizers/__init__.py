"""Rules by which training makes a step."""

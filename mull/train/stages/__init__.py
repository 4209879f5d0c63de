"""The stages of a recipe: one file each, a loop of steps."""

"""What a simulated day is worth: its numbers, their columns and curves."""

"""What a real engine measured, how far the simulator is from it, and which step times bring it near."""

"""The twin: watches traffic, has a process of its own replay it under other policies, and switches where it pays."""

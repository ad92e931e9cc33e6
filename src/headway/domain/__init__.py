"""Values that all rooms share: requests, events, estimates, views. No behaviour depends on a clock or on chance."""

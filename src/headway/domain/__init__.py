"""What travels between the rooms: values only, no behaviour that depends on a clock or on chance."""

"""How far from the best possible: lower bounds for any trace, the optimum of small instances, and who comes near."""

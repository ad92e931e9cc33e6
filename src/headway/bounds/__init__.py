"""Distance from the best possible: lower bounds for any trace, the optimum of small instances, policies beside it."""

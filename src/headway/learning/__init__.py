"""Predictors that learn outside the scheduling path, with third-party libraries."""

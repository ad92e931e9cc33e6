"""Lanes of the EWSJF orderings: learning them, assigning requests to them, scoring their heads."""

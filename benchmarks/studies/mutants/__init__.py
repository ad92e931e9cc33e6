"""Mutants: how many small faults in the code do the tests find?"""

"""Public test kit: laws for every contract, strategies that draw hard cases, checks on whole simulated days.

To test a policy outside this package::

    from headway.testing import laws

    @pytest.mark.parametrize("law", laws.RANKED)  # laws.LANED for an ordering with lanes
    def test_my_order_is_lawful(law):
        law(MyOrdering)

`laws` and `strategies` need hypothesis (`pip install headway[testing]`); the rest does not.
"""

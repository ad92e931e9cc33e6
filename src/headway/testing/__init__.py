"""The public test kit: laws for every contract, strategies that draw nasty cases, checks on whole simulated days.

For a policy of your own, in your own tests::

    from headway.testing import laws

    @pytest.mark.parametrize("law", laws.ORDERING)
    def test_my_order_is_lawful(law):
        law(MyOrdering)

`laws` and `strategies` need hypothesis (`pip install headway[dev]`); the rest does not.
"""

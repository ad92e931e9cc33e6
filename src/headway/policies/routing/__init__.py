"""Where does it run? One file a policy; contract: `headway.policies.contracts.RoutingPolicy`."""

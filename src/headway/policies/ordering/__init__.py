"""Who goes next? One file a policy; contract: `headway.policies.contracts.OrderingPolicy`."""

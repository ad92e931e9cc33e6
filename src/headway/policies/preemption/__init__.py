"""Who gives way? One file a policy; contract: `headway.policies.contracts.PreemptionPolicy`."""

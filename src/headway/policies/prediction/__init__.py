"""How long will it be? One file a policy; contract: `headway.policies.contracts.LengthPredictor`."""

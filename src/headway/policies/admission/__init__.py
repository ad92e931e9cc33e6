"""May it come in now? One file a policy; contract: `headway.policies.contracts.AdmissionPolicy`."""

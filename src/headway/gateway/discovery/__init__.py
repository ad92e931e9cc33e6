"""Who are the replicas now? Names, files, Kubernetes and `/admin` say it while the gateway runs."""

"""What learns off the scheduler's path, with third-party help, and hands its findings to policies."""

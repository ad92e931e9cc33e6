"""The endpoint picker: Envoy asks it where each request goes (external processing), and carries the bytes itself."""

"""Virtual time: a modelled engine that runs the real policies over a trace."""

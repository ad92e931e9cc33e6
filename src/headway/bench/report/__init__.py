"""How a comparison is shown: tables on a terminal, and an HTML report with charts."""

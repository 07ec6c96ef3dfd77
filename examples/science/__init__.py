"""Published effects on SmolLM2-135M and on tiny models: ``make science`` runs them and writes docs/science.md."""

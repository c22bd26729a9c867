"""The tests, by question: values against `reference`, contracts, laws. See `numerics` for what "equal" means."""
